"""Who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssl_asr"
FILES = sorted(PACKAGE.rglob("*.py"))

# A layer may import the layers below it. Packages of one layer do not import each other.
LAYERS = {
    "errors": 0,
    "types": 0,
    "scripts": 0,
    "console": 0,
    "textfiles": 0,
    "pages": 0,
    "config": 1,
    "data": 1,
    "models": 1,
    "decoding": 1,
    "metrics": 1,
    "training": 2,
    "build": 3,
    "inference": 4,
    "export": 5,
    "serve": 5,
    "report": 5,
    "commands": 6,
    "__init__": 7,
    "__main__": 7,
    "train": 8,
}
LIBRARIES = {
    "hydra": {"config", "build", "commands"},
    "omegaconf": {"config", "build", "commands"},
    "lightning": {"data/module", "training", "inference/batches"},
    "transformers": {"models", "data/whisper_tokenizer", "data/text", "decoding/neural_lm", "export", "console"},
    "peft": {"models"},
    "wandb": {"training/wandb"},
    **{library: {"serve"} for library in ("fastapi", "starlette", "uvicorn", "prometheus_client")},
}
# Modules that take seconds to import.
SLOW = ("lightning", "transformers.modeling_utils", "torchmetrics", "peft", "torch._dynamo", "wandb")


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def _nodes(tree: ast.AST, checked: bool = False):
    """Nodes that run, or else nodes under ``if TYPE_CHECKING``, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from ast.walk(node) if checked else ()
        elif checked:
            yield from _nodes(node, checked)
        else:
            yield node
            yield from _nodes(node)


def _imports(path: Path, checked: bool = False) -> set[str]:
    found = set()
    for node in _nodes(ast.parse(path.read_text()), checked):
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
    for module in _imports(path):
        if module.startswith("ssl_asr."):
            other = module.split(".")[1]
            assert other == own or LAYERS[other] < LAYERS[own], f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_for_type_checkers_point_down_too(path):
    """But the schema of a run names the types of options, and an option's ``conflicts`` takes the schema of a run."""
    own = _name(path).split("/")[0]
    if own == "config":
        return
    for module in _imports(path, checked=True) - {"ssl_asr.config.schemas"}:
        if module.startswith("ssl_asr."):
            other = module.split(".")[1]
            assert other == own or LAYERS[other] < LAYERS[own], f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_libraries_stay_where_they_belong(path):
    name = _name(path)
    for module in _imports(path):
        homes = LIBRARIES.get(module.split(".")[0])
        assert homes is None or any(name == home or name.startswith(f"{home}/") for home in homes), f"{name}: {module}"


@pytest.mark.parametrize("module", ["ssl_asr", "ssl_asr.train", "ssl_asr.__main__", "ssl_asr.config.launch"])
def test_importing_an_entry_point_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_option_modules_import_no_slow_library():
    """So that a command line is checked in seconds."""
    targets = {
        line.split()[-1]
        for path in (PACKAGE.parent / "conf").rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.strip().startswith("_target_:")
    }
    modules = ", ".join(sorted({target.rpartition(".")[0] for target in targets if target.startswith("ssl_asr.")}))
    code = f"import sys, {modules}; print([m for m in {SLOW} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stderr


def test_at_most_eight_modules_at_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_every_command_has_a_short_file():
    for path in (PACKAGE / "commands").glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path
