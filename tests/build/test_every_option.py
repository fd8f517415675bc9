"""Every option composes and builds. Tiny checkpoints replace the published ones."""

import pytest

from tests.config.options import GROUPS, OPTIONS, SIDES
from tests.toys import toy_for
from tests.training.toy_runs import build, config_of

# Options for checkpoints that are fine-tuned with CTC. tests/models/test_ctc_checkpoints.py builds them.
ELSEWHERE = {("head", "pretrained"), ("tokenizer", "pretrained")}
# Options whose packages may be absent, with their extras.
OF_EXTRAS = {"adamw_8bit": ("bitsandbytes", "8bit"), "mlflow": ("mlflow", "mlflow")}
SMALL = {
    ("states", "layer"): ["states.layer=1"],
    ("tokenizer", "bpe"): ["tokenizer.size=8"],
    ("tokenizer", "unigram"): ["tokenizer.size=8"],
    ("freeze_policy", "top_k"): ["freeze_policy.k=1"],
    ("freeze_policy", "adapters"): ["backbone.adapter_dim=4"],
    ("experiment", "mms_adapter"): ["backbone.adapter_dim=4"],
    ("experiment", "nemo_finetune"): ["tokenizer.size=8"],
    ("experiment", "espnet_ssl"): ["tokenizer.size=8"],
    ("state_cache", "disk"): ["freeze=true"],
    ("augment", "spec_augment"): ["freeze=false"],
    ("augment", "spec_augment_mel"): ["freeze=false"],
}
WHISPER_ONLY = {
    ("task", "seq2seq"),
    ("tokenizer", "whisper"),
    ("decoder", "whisper_greedy"),
    ("decoder", "whisper_beam"),
    ("head", "none"),
    ("freeze_policy", "decoder"),
    ("augment", "spec_augment_mel"),
}
TASK = dict.fromkeys(("attention_gru", "attention_transformer", "attention_greedy", "attention_beam"), "joint")


def test_options_of_every_group_are_listed():
    # Those of hydra are launchers.
    assert {group for group, _ in OPTIONS} == set(GROUPS) - {"hydra"}


@pytest.mark.parametrize(
    ("group", "option"),
    [
        # Backbones differ by their checkpoints, which are toys here, and recipes have tests of their own.
        pytest.param(*pair, marks=[pytest.mark.slow] if pair[0] in ("backbone", "experiment") else [])
        for pair in OPTIONS
        if pair not in ELSEWHERE
    ],
)
def test_every_option_builds(toy_checkpoints, toy_corpus, tmp_path, monkeypatch, group, option):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    if option in OF_EXTRAS:
        package, extra = OF_EXTRAS[option]
        pytest.importorskip(package, reason=f"pip install 'ssl_asr[{extra}]'")
        monkeypatch.chdir(tmp_path)
    choice = [f"{group}={option}"]
    if group in SIDES:
        choice = [SIDES[group].format(side) + f"={option}" for side in ("encoder", "rest")]
    overrides = [
        *(["backbone=whisper_tiny_en"] if (group, option) in WHISPER_ONLY else []),
        *([f"task={TASK[option]}"] if option in TASK else []),
        *choice,
        *(f"data.{split}={toy_corpus[split]}" for split in ("train", "dev", "test")),
        *SMALL.get((group, option), []),
        "data.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        # Some recipes limit updates and not epochs.
        "trainer.max_steps=10",
        *([] if group == "logger" or option == "lr_monitor" else ["logger=none"]),
        *([f"state_cache.folder={tmp_path}/states"] if (group, option) == ("state_cache", "disk") else []),
    ]
    if option == "ctc_lexicon":
        words = tmp_path / "words.txt"
        words.write_text("a\n", encoding="utf-8")
        overrides.append(f"decoder.lexicon={words}")
    toy = toy_for(config_of(*overrides)["backbone"]["source"])
    run = build(tmp_path / "run", *overrides, f"backbone.source={toy_checkpoints[toy]}")
    optimizers, schedulers = run.module.configure_optimizers()
    assert 1 <= len(optimizers) == len(schedulers) <= 2
    trained = {id(p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    assert trained == {id(p) for p in run.module.parameters() if p.requires_grad}
    assert 0 < run.module.total_updates <= 10
