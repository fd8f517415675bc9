"""Dependencies: every import is declared, and every optional one has an error that names its extra."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssl_asr.errors import ConfigError

REPO = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
# Packages with an import name that differs from the name on the package index.
DISTRIBUTIONS = {
    "wandb_workspaces": "wandb-workspaces",
    "espeakng_loader": "espeakng-loader",
    "flashlight": "flashlight-text",
    "faster_whisper": "faster-whisper",
    "huggingface_hub": "huggingface-hub",
    "sherpa_onnx": "sherpa-onnx",
    "hydra": "hydra-core",
    "prometheus_client": "prometheus-client",
    "whisper_normalizer": "whisper-normalizer",
    "yaml": "pyyaml",
    "annotated_types": "annotated-types",
    "pydantic_core": "pydantic",
}
# A dependency of torch's CUDA builds on Linux. Without it, torch's CTC loss is used.
WITH_TORCH = {"triton"}
# Packages that are read as data: the weights of Silero VAD, and the table of British spellings.
DATA_ONLY = {"silero-vad", "whisper-normalizer"}
OPTIONAL = {
    "bitsandbytes": "8bit",
    "ctranslate2": "ctranslate2",
    "datasets": "datasets",
    "espeakng-loader": "corpus",
    "fastapi": "serve",
    "faster-whisper": "ctranslate2",
    "flashlight-text": "lexicon",
    "gguf": "ggml",
    "kenlm": "kenlm",
    "lhotse": "lhotse",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "matplotlib": "dashboard",
    "peft": "lora",
    "prometheus-client": "serve",
    "sacrebleu": "translation",
    "starlette": "serve",
    "uvicorn": "serve",
    "pywhispercpp": "ggml",
    "sherpa-onnx": "onnx",
    "wandb-workspaces": "dashboard",
}


def _names(requirements):
    return {re.match(r"[\w-]+", requirement).group().lower() for requirement in requirements}


def _imported():
    """Names of the distributions that modules of the package import, and the first module that does."""
    found = {}
    for path in sorted((REPO / "ssl_asr").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top != "ssl_asr":
                    found.setdefault(DISTRIBUTIONS.get(top, top).lower(), path.relative_to(REPO).as_posix())
    return found


def test_every_import_is_a_declared_dependency():
    core = _names(PROJECT["dependencies"])
    for name, module in _imported().items():
        if name in WITH_TORCH:
            continue
        if name in OPTIONAL:
            assert name in _names(PROJECT["optional-dependencies"][OPTIONAL[name]]), f"{module} imports {name}"
            assert name not in core, f"{name} is optional: {module} raises an error without it"
        else:
            assert name in core, f"{module} imports {name}, which pyproject.toml does not list"


def test_every_core_dependency_is_imported():
    assert _names(PROJECT["dependencies"]) <= set(_imported()) | DATA_ONLY


def _adamw_8bit(tmp_path):
    from ssl_asr.training.optimizers import AdamW8bit

    AdamW8bit(lr=0.1, betas=[0.9, 0.98], eps=1e-8, weight_decay=0.0, layer_decay=1.0).build([])


def _corpus(tmp_path):
    from ssl_asr.data.corpora.spoken import Espeak

    Espeak()


def _datasets(tmp_path):
    from ssl_asr.data.formats.huggingface import read_huggingface
    from ssl_asr.data.formats.rows import ReadOptions

    read_huggingface(tmp_path, ReadOptions(output=tmp_path))


def _lhotse(tmp_path):
    from ssl_asr.data.formats.lhotse import read_lhotse
    from ssl_asr.data.formats.rows import ReadOptions

    read_lhotse(tmp_path, ReadOptions())


def _kenlm(tmp_path):
    from ssl_asr.decoding.language_models import KenLM

    KenLM(tmp_path / "lm.bin")


def _lexicon(tmp_path):
    from ssl_asr.decoding.lexicon import CtcLexicon

    options = {
        "lm": None,
        "lm_weight": 0.0,
        "word_score": 0.0,
        "beam_size": 2,
        "beam_threshold": 25.0,
        "max_labels": None,
    }
    CtcLexicon(lexicon="words.txt", n_best=1, **options).build([None, "a"])


def _lora(tmp_path):
    from ssl_asr.models.adapters import LoRA

    options = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "encoder": True, "decoder": False, "targets": None}
    encoder = SimpleNamespace(net=torch.nn.Linear(1, 1), lora_targets=("q_proj",))
    LoRA(checkpoint="full", **options).prepare(encoder, None)


def _dashboard(tmp_path):
    from ssl_asr.commands.dashboard import dashboard
    from ssl_asr.config.tools import DashboardConfig

    dashboard(DashboardConfig(output=str(tmp_path / "workspace.json")), tmp_path)


def _tensorboard(tmp_path):
    from ssl_asr.training.loggers import TensorBoardLog

    TensorBoardLog().build(folder=tmp_path, name="run", config={})


def _translation(tmp_path):
    from ssl_asr.metrics.translation import translation_scores

    translation_scores([["a"]], ["a"])


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("bitsandbytes", "8bit", _adamw_8bit),
        ("espeakng_loader", "corpus", _corpus),
        ("datasets", "datasets", _datasets),
        ("kenlm", "kenlm", _kenlm),
        ("wandb_workspaces", "dashboard", _dashboard),
        ("lhotse", "lhotse", _lhotse),
        ("flashlight.lib.text", "lexicon", _lexicon),
        ("peft", "lora", _lora),
        ("sacrebleu.metrics.bleu", "translation", _translation),
    ],
)
def test_a_missing_optional_package_gives_an_error_with_its_extra(package, extra, use, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"not installed.*pip install 'ssl_asr\[{extra}\]'"):
        use(tmp_path)
    assert extra in PROJECT["optional-dependencies"]


def test_missing_tensorboard_gives_an_error_with_its_extra(tmp_path, monkeypatch):
    from lightning.fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(ConfigError, match=r"pip install 'ssl_asr\[tensorboard\]'"):
        _tensorboard(tmp_path)


def test_a_missing_sweeper_gives_an_error_with_its_extra():
    # In a process of its own, since Hydra looks for plugins once.
    code = (
        "import sys; sys.modules['hydra_plugins.hydra_optuna_sweeper'] = None\n"
        "from ssl_asr.config.check import preflight; preflight('train', ['sweep=optuna', 'data.train=a.jsonl'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert "pip install 'ssl_asr[optuna]'" in done.stderr


def test_lint_finds_a_function_that_nobody_calls(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def called():\n    return 1\n\n\ndef never_called():\n    return called()\n")
    command = [sys.executable, "-m", "vulture", "--config", str(REPO / "pyproject.toml"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "unused function 'never_called'" in done.stdout
    assert "'called'" not in done.stdout
