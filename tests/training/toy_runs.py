"""Training runs of tiny models, built as ``train`` builds them."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from ssl_asr.build.training import TrainingRun, build_training
from ssl_asr.config.folders import config_folder
from ssl_asr.config.nodes import register_schemas
from ssl_asr.config.options import plain
from ssl_asr.config.resolve import resolve
from ssl_asr.config.schemas import TrainConfig
from ssl_asr.console import hush


def resolved(*overrides: str) -> TrainConfig:
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return resolve(compose("train", overrides=[*overrides, "run_dir=unused"]))


def config_of(*overrides: str) -> dict:
    return plain(resolved(*overrides))


def toy_overrides(checkpoint: Path, corpus: dict[str, Path], task: str = "ctc") -> list[str]:
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
    hush()
    return build_training(resolved(*overrides), folder, None)
