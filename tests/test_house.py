"""How the code is laid out: sizes, types of the seams, documentation. Run as a script, it prints the figures.

python -m tests.test_house
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "ssl_asr"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
SEARCHES = [PACKAGE / "decoding" / f"{name}.py" for name in ("beam", "ctc_beam", "ctc_prefix", "greedy")]

# Public functions and classes on the seams between packages: their signatures name types, never Any.
SEAMS = {
    "build/training.py",
    "build/restore.py",
    "inference/batches.py",
    "inference/long_recordings.py",
    "inference/recording.py",
    "inference/voice.py",
    "inference/model.py",
    "inference/transcriber.py",
    "models/encoder.py",
    "models/freezing.py",
    "models/heads.py",
    "models/states.py",
    "data/dataset.py",
    "data/module.py",
    "metrics/evaluation.py",
    "decoding/beam.py",
    "decoding/ctc_beam.py",
    "decoding/greedy.py",
    "training/ctc.py",
    "training/joint.py",
    "training/module.py",
    "training/optimizers.py",
    "training/schedulers.py",
    "training/sides.py",
    "training/updates.py",
}
# Hooks that Lightning calls with values of any type, and options of any class.
UNTYPED = {"on_train_batch_end", "set_decoder", "configure_optimizers"}


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def public(tree):
    """Public classes, functions and methods, with their names."""
    found = [("module", tree)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, node))
            methods = node.body if isinstance(node, ast.ClassDef) else []
            found += [
                (f"{node.name}.{method.name}", method)
                for method in methods
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
            ]
    return found


def isinstance_calls(tree):
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "isinstance"]


def annotations(function):
    """Annotations of a signature, without those of plain data such as ``dict[str, Any]``."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    nodes = [argument.annotation for argument in arguments] + [function.returns]
    return [ast.unparse(node) for node in nodes if node is not None]


def comment_share(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(line.strip().startswith("#") or "  # " in line for line in lines) / len(lines)


def figures():
    """The figures that the tests below bound."""
    lengths = {f"{name(p)}:{f.name}": f.end_lineno - f.lineno + 1 for p, t in TREES.items() for f in functions(t)}
    documented = [ast.get_docstring(node) is not None for tree in TREES.values() for _, node in public(tree)]
    mentions = [sum("Any" in a for a in annotations(f)) for tree in TREES.values() for f in functions(tree)]
    return {
        "files at the package's root": len([path for path in PACKAGE.iterdir() if path.is_file()]),
        "files": len(FILES),
        "longest file, lines": max(len(path.read_text().splitlines()) for path in FILES),
        "longest function, lines": max(lengths.values()),
        "isinstance": sum(len(isinstance_calls(tree)) for tree in TREES.values()),
        "isinstance in build/": sum(len(isinstance_calls(t)) for p, t in TREES.items() if "build/" in name(p)),
        "arguments and results that mention Any": sum(mentions),
        "public docstrings, %": 100 * sum(documented) / len(documented),
        "comments in the search modules, %": [round(100 * comment_share(path), 1) for path in SEARCHES],
    }


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_have_at_most_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_have_at_most_60_lines(path):
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(TREES[path]) if f.end_lineno - f.lineno + 1 > 60}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=name)
def test_everything_public_has_a_docstring(path):
    assert not [what for what, node in public(TREES[path]) if ast.get_docstring(node) is None]


def test_the_assembly_asks_for_few_types():
    calls = [call for path, tree in TREES.items() if "build/" in name(path) for call in isinstance_calls(tree)]
    assert len(calls) <= 4


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_asks_which_task_or_family_it_has(path):
    """Tasks, modules and encoders answer for themselves."""
    suffixes = ("Module", "Encoder", "Backbone", "Seq2Seq", "Joint", "Ctc")
    asked = {
        part.id if isinstance(part, ast.Name) else part.attr
        for call in isinstance_calls(TREES[path])
        for part in ast.walk(call.args[1])
        if isinstance(part, ast.Name | ast.Attribute)
    }
    allowed = {"ASRModule", "LightningModule", "FSDPModule"}
    assert not {kind for kind in asked - allowed if kind.endswith(suffixes)}


@pytest.mark.parametrize("seam", sorted(SEAMS))
def test_seams_name_types(seam):
    for what, node in public(TREES[PACKAGE / seam]):
        if isinstance(node, ast.FunctionDef) and node.name not in UNTYPED:
            loose = [a for a in annotations(node) if "Any" in a.replace("dict[str, Any]", "")]
            assert not loose, f"{what}: {loose}"


@pytest.mark.parametrize("path", SEARCHES, ids=name)
def test_searches_explain_their_steps(path):
    assert comment_share(path) >= 0.03


def test_lint_finds_unused_code(tmp_path):
    """The unused-code check of ``make lint`` reports a function that nothing calls."""
    (tmp_path / "unused.py").write_text('"""A module."""\n\n\ndef nobody_calls_this():\n    """Nothing."""\n')
    command = [sys.executable, "-m", "vulture", str(tmp_path), "--min-confidence", "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "nobody_calls_this" in done.stdout


if __name__ == "__main__":
    for what, value in figures().items():
        print(f"{what}: {value if isinstance(value, list) else round(value, 1)}")


def test_no_assertion_has_its_comparison_in_its_message():
    """``assert a, b == (1, 2)`` compares nothing: what follows the first comma is the message."""
    found = []
    for path in sorted((REPO / "tests").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        compared = [node for node in nodes if isinstance(node, ast.Assert) and isinstance(node.msg, ast.Compare)]
        found += [f"{path}:{node.lineno}" for node in compared]
    assert not found


def test_the_top_level_holds_nothing_else():
    """What is committed there, besides dotfiles. A command that writes where it was started would add to it."""
    command = ["git", "-C", str(REPO), "ls-files"]
    top = {path.split("/")[0] for path in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()}
    if not top:
        pytest.skip("not a git checkout")
    wanted = {
        "pyproject.toml",
        "ssl_asr",
        "conf",
        "tests",
        "notebooks",
        "Makefile",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    assert {name for name in top if not name.startswith(".")} <= wanted
