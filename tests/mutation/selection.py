"""Which tests may notice a change of a line: those that run it, the quickest first."""

import ast
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from coverage import CoverageData

from tests.mutation.mutants import REPO, Mutant


def _inside(node: ast.AST) -> list[ast.stmt | ast.excepthandler]:
    """Statements and handlers directly inside a compound statement."""
    inside = [child for field in ("body", "handlers", "orelse", "finalbody") for child in getattr(node, field, [])]
    return inside + [child for case in getattr(node, "cases", []) for child in case.body]


def _first(node: ast.AST) -> int:
    """First line of a statement, with its decorators."""
    return min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])


def _statement(node: ast.AST, line: int, *, called: bool = False) -> tuple[range, bool] | None:
    """Lines of the innermost statement at ``line``, and whether a call runs it, or else the import.

    A compound statement counts up to its body. The first lines of a function, with its defaults, stand for the body.
    """
    for child in _inside(node):
        last, inside = child.end_lineno or 0, _inside(child)
        if _first(child) <= line <= last:
            function = isinstance(child, ast.FunctionDef)
            if (found := _statement(child, line, called=called or function)) is not None:
                return found
            if function:
                return range(_first(inside[0]), last + 1), True
            return range(_first(child), min([last + 1, *(max(_first(i), child.lineno + 1) for i in inside)])), called
    return None


class Selection:
    """Selects tests from what `cover` recorded.

    Args:
        folder: Coverage data and results of pytest, one file of each for each folder of tests.
    """

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        for path in sorted(folder.glob("junit.*.xml")):
            for case in ElementTree.parse(path).getroot().iter("testcase"):
                if case.find("failure") is None and case.find("error") is None and case.find("skipped") is None:
                    test = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
                    self.seconds[test] = float(case.attrib["time"])
        self._data = []
        for path in sorted(folder.glob("coverage.*.db")):
            self._data.append(CoverageData(str(path)))
            self._data[-1].read()
        self._of_file: dict[str, list[str]] = defaultdict(list)
        for test in self.seconds:
            self._of_file[test.split("::")[0]].append(test)
        self._tests: dict[str, dict[int, set[str]]] = {}

    def _lines(self, path: str) -> dict[int, set[str]]:
        """For each line of a module, the tests that run it."""
        if path not in self._tests:
            found: dict[int, set[str]] = defaultdict(set)
            for data in self._data:
                for line, contexts in data.contexts_by_lineno(path).items():
                    found[line].update(test for context in contexts if context for test in self._running(context))
            self._tests[path] = found
        return self._tests[path]

    def _running(self, context: str) -> Iterable[str]:
        """Tests of a context. What a fixture of several tests runs is recorded with the first of them only."""
        test, _, phase = context.rpartition("|")
        return self._of_file[test.split("::")[0]] if phase == "setup" else [test]

    def tests(self, mutant: Mutant, seconds: float) -> list[str]:
        """Tests that run a mutated line, at most ``seconds`` of them, the quickest first.

        For a line that runs on import, these are the tests that run anything in its module, and those in the file named
        like it.
        """
        tree = ast.parse((REPO / mutant.path).read_text(encoding="utf-8"))
        statement, called = _statement(tree, mutant.line) or (range(0), False)
        lines = self._lines(mutant.path)
        named = f"tests/{mutant.part}/test_{Path(mutant.path).stem}.py"
        chosen = {test for line in (statement if called else lines) for test in lines.get(line, ())}
        if not called:
            chosen |= set(self._of_file[named])
        order = sorted(
            chosen & set(self.seconds),
            key=lambda test: (round(self.seconds[test], 1), not test.startswith(named), test),
        )
        taken: list[str] = []
        for test in order:
            seconds -= self.seconds[test] + 0.01
            if seconds < 0 and taken:
                break
            taken.append(test)
        return taken
