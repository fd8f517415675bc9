"""Mutants of the package: sources with one operator, number or keyword changed by cosmic-ray."""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

REPO = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module.

    Attributes:
        path: str, the module's file, relative to the repository.
        operator: str, cosmic-ray's name of the kind of change.
        occurrence: int, which of the places in the module that the operator can change.
        line: int, the changed line, from 1.
        column: int, the changed column, from 0.
    """

    path: str
    operator: str
    occurrence: int
    line: int
    column: int

    @property
    def place(self) -> tuple[str, int, int, str]:
        """What is changed: mutants that turn one ``+`` into ``-``, ``*`` and so on share their place."""
        return self.path, self.line, self.column, self.operator.split("_")[0]

    @property
    def part(self) -> str:
        """The folder of the package, such as ``data``."""
        return self.path.split("/")[1]

    def source(self) -> str | None:
        """The mutated module, or None if it does not compile or means the same."""
        return _mutated(self)

    def changed(self) -> tuple[str, str]:
        """The first line that differs, before and after."""
        before = (REPO / self.path).read_text(encoding="utf-8").splitlines()
        after = (self.source() or "").splitlines()
        return next((a.strip(), b.strip()) for a, b in zip(before, after, strict=False) if a != b)


@cache
def _mutated(mutant: Mutant) -> str | None:
    before = (REPO / mutant.path).read_text(encoding="utf-8")
    after: str | None = mutate_code(before, cosmic_ray.plugins.get_operator(mutant.operator)(), mutant.occurrence)
    try:
        same = after is None or ast.dump(ast.parse(after)) == ast.dump(ast.parse(before))
    except SyntaxError:
        return None
    return None if same else after


def module_paths(settings: dict[str, Any]) -> list[Path]:
    """Files that are mutated."""
    found: list[Path] = []
    for name in settings["cosmic-ray"]["module-path"]:
        path = REPO / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.name != "__init__.py" or path.stat().st_size > 200]


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Positions of type annotations: a change there is an error on import, or nothing."""
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign | ast.arg):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            nodes.append(node.returns)
    found = [node for node in nodes if node is not None]
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in found]


def mutants_of(path: Path, settings: dict[str, Any]) -> Iterator[Mutant]:
    """All mutants of a module but those that the settings exclude."""
    source = path.read_text(encoding="utf-8")
    lines, annotations = source.splitlines(), _annotations(source)
    excluded = "|".join(settings["cosmic-ray"]["filters"]["operators-filter"]["exclude-operators"])
    no_code = "|".join(settings["code"]["exclude"])
    nodes = [node for node in ast_nodes(get_ast(source)) if node.type not in ("name", "string", "newline")]
    for name in cosmic_ray.plugins.operator_names():
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments() or re.match(excluded, name):
            continue
        positions = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for occurrence, start in enumerate(positions):
            line, column = start
            no_behaviour = any(
                found.start() <= column < found.end() for found in re.finditer(no_code, lines[line - 1])
            ) or any(first <= start < last for first, last in annotations)
            if not no_behaviour:
                yield Mutant(path.relative_to(REPO).as_posix(), name, occurrence, *start)


def sample(settings: dict[str, Any], *, count: int, seed: int) -> list[Mutant]:
    """A random sample of places to change, with one mutant for each, in proportion to the size of each folder."""
    places: dict[str, dict[tuple[str, int, int, str], list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for path in module_paths(settings):
        for mutant in mutants_of(path, settings):
            places[mutant.part][mutant.place].append(mutant)
    total = sum(len(found) for found in places.values())
    rng = random.Random(seed)
    chosen: list[Mutant] = []
    for part in sorted(places):
        wanted = len(chosen) + round(count * len(places[part]) / total)
        order = sorted(places[part])
        rng.shuffle(order)
        for place in order:
            if len(chosen) == wanted:
                break
            candidates = places[part][place]
            rng.shuffle(candidates)
            chosen += [mutant for mutant in candidates if mutant.source() is not None][:1]
    rng.shuffle(chosen)
    return chosen
