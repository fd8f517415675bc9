"""Training runs of tiny models, built as the ``train`` command builds them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from ssl_asr.build.training import TrainingRun, build_training
from ssl_asr.config.folders import config_folder
from ssl_asr.config.nodes import register_schemas
from ssl_asr.config.options import plain
from ssl_asr.config.resolve import resolve
from ssl_asr.config.schemas import TrainConfig
from ssl_asr.console import hush
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.command_runner import REPO


def resolved(*overrides: str) -> TrainConfig:
    """The training config of a command line."""
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return resolve(compose("train", overrides=[*overrides, "run_dir=unused"]))


def config_of(*overrides: str) -> dict:
    """The training config of a command line as plain data."""
    return plain(resolved(*overrides))


def toy_overrides(checkpoint: Path, corpus: dict[str, Path], task: str = "ctc") -> list[str]:
    """Overrides for a short run of a toy checkpoint on the toy corpus, on the CPU."""
    backbone = "whisper_tiny_en" if checkpoint.name == "whisper" else "wav2vec2_base"
    return [
        f"backbone={backbone}",
        f"task={task}",
        f"backbone.source={checkpoint}",
        f"data.train={corpus['train']}",
        f"data.dev={corpus['dev']}",
        f"data.test={corpus['test']}",
        "data.max_batch_s=3.0",
        "data.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "logger=none",
        *(["decoder.max_tokens_per_s=4"] if task == "seq2seq" else []),
    ]


def build(folder: Path, *overrides: str) -> TrainingRun:
    """A training run in this process that prints nothing."""
    hush()
    return build_training(resolved(*overrides), folder, None)


def run_train(folder: Path, *overrides: str, start: Sequence[str] = ("-m", "ssl_asr.train")) -> dict[str, Any]:
    """Run ``train`` in a new process, as training on several ranks needs, and return its last checkpoint.

    Args:
        folder: Folder of the run.
        overrides: Overrides of the command line.
        start: Arguments of python that start the command.
    """
    done = subprocess.run(
        [sys.executable, *start, *overrides, f"run_dir={folder}", "verbose=false"],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}
