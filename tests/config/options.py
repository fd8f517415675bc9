"""Every option of every group, and overrides under which it composes."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from ssl_asr.config.folders import config_folder
from ssl_asr.config.nodes import register_schemas
from ssl_asr.config.resolve import resolve
from ssl_asr.config.schemas import TrainConfig

CONF = config_folder()
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "local"
}
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
SIDES = {"optimizer": "optimizer@optimizers.{}", "scheduler": "scheduler@schedulers.{}"}
NEEDED = ["data.train=t.jsonl", "run_dir=r"]
_OF_WHISPER = {
    ("task", "seq2seq"),
    ("tokenizer", "whisper"),
    ("decoder", "whisper_greedy"),
    ("decoder", "whisper_beam"),
    ("head", "none"),
    ("freeze_policy", "decoder"),
}


def compose_train(*overrides):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def resolved(*overrides) -> TrainConfig:
    return resolve(compose_train(*NEEDED, *overrides))


def overrides_of(group: str, option: str, folder: Path) -> list[str]:
    """Overrides that choose an option and whatever goes with it."""
    chosen = [f"{group}={option}"]
    if group in SIDES:
        chosen = [SIDES[group].format(side) + f"={option}" for side in ("encoder", "rest")]
    if (group, option) in _OF_WHISPER:
        chosen = ["backbone=whisper_tiny_en", *chosen]
    if option.startswith("attention_"):
        chosen = ["task=joint", *chosen]
    if group == "augment":
        chosen.append("freeze=false")
    if (group, option) == ("state_cache", "disk"):
        chosen.append("freeze=true")
    if group in ("scheduler", "experiment", "callbacks"):
        chosen.append("data.dev=d.jsonl")
    if option == "ctc_lexicon":
        words = folder / "words.txt"
        words.write_text("a\n", encoding="utf-8")
        chosen.append(f"decoder.lexicon={words}")
    return chosen
