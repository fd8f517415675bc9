"""Who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssl_asr"
FILES = sorted(PACKAGE.rglob("*.py"))

# A layer may import those before it; siblings within a layer do not import each other.
LAYERS = {
    "errors": 0,
    "types": 0,
    "quiet": 0,
    "textfiles": 0,
    "targets": 1,
    "config": 2,
    "data": 2,
    "models": 2,
    "decoding": 2,
    "metrics": 2,
    "training": 3,
    "build": 4,
    "recognition": 6,
    "transcripts": 3,
    "longform": 5,
    "transcription": 7,
    "api": 7,
    "tuning": 7,
    "cli": 5,
}
COMMANDS = ("train", "evaluate", "transcribe", "extract", "align", "compare", "lm", "tune_decoding", "corpus", "demo")
ENTRY_POINTS = {*COMMANDS, "__main__", "__init__"}
LIBRARIES = {
    "hydra": {"config", "build", "cli"},
    "omegaconf": {"config", "build", "cli"},
    "lightning": {"data/module", "training", "build", "recognition", "transcription"},
    "transformers": {"models", "data/tokenizer", "data/text", "decoding/neural_lm"},
    "wandb": {"training/wandb"},
}


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "ssl_asr":
                found |= {f"ssl_asr.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_down(path):
    own = _name(path).split("/")[0]
    rank = 9 if own in ENTRY_POINTS else LAYERS[own]
    for module in _imports(path):
        if module.startswith("ssl_asr."):
            other = module.split(".")[1]
            assert other == own or other not in ENTRY_POINTS, f"{path} imports the entry point {module}"
            assert other == own or LAYERS[other] < rank, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_libraries_stay_where_they_belong(path):
    name = _name(path)
    for module in _imports(path):
        homes = LIBRARIES.get(module.split(".")[0])
        assert homes is None or any(name == home or name.startswith(f"{home}/") for home in homes), f"{name}: {module}"


@pytest.mark.parametrize(
    "module", ["ssl_asr", "ssl_asr.cli", "ssl_asr.train", "ssl_asr.evaluate", "ssl_asr.transcribe"]
)
def test_importing_an_entry_point_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_entry_points_are_short(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    lengths = {n.name: n.end_lineno - n.lineno for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert max(lengths.values()) < 60, lengths
