"""Checkpoints: plain types, and resumed runs that equal uninterrupted ones."""

import pytest
import torch

from ssl_asr.errors import CheckpointError, ConfigError, UserErrors
from ssl_asr.training.checkpoint_files import KEY, read_checkpoint
from ssl_asr.training.checkpointing import check_resumable, check_same_settings
from tests.training.toy_runs import build, config_of, toy_overrides


class Stop(Exception):
    """Ends a run after an update."""


@pytest.mark.parametrize(("stop_at", "workers"), [(2, 0), (4, 2), (5, 0)])
def test_resumed_run_equals_uninterrupted_run(toy_checkpoints, toy_corpus, tmp_path, stop_at, workers):
    """Stopped within an epoch, with dropout, speed perturbation and warm-up, and resumed at another random state."""
    overrides = [
        *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus),
        "trainer.max_epochs=3",
        "trainer.checkpoint_every_n_updates=1",
        f"data.num_workers={workers}",
        "freeze=false",
        "optimizers.encoder.lr=0.01",
        "head.dropout=0.3",
        "data.max_batch_s=2.5",
        "data.speed_factors=[0.9,1.0,1.1]",
    ]
    whole = build(tmp_path / "whole", *overrides)
    whole.trainer.fit(whole.module, datamodule=whole.data)
    per_epoch = len(whole.data.train_sampler(0))
    assert per_epoch > 3

    stopped = build(tmp_path / "stopped", *overrides)
    last = [c for c in stopped.trainer.checkpoint_callbacks if c.filename == "last"][0]
    plain = last.on_train_batch_end

    def on_train_batch_end(trainer, *arguments, **more):
        plain(trainer, *arguments, **more)
        if trainer.global_step == stop_at:
            raise Stop

    last.on_train_batch_end = on_train_batch_end
    with pytest.raises(Stop):
        stopped.trainer.fit(stopped.module, datamodule=stopped.data)

    torch.rand(17)
    resumed = build(tmp_path / "resumed", *overrides)
    torch.rand(5)
    ids = []
    plain_loss = resumed.module.loss
    resumed.module.loss = lambda batch, out=None: (
        ids.append(batch.ids) if resumed.module.training else None,
        plain_loss(batch, out),
    )[1]
    resumed.trainer.fit(
        resumed.module, datamodule=resumed.data, ckpt_path=str(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    )
    assert resumed.trainer.global_step == whole.trainer.global_step == whole.module.total_updates
    assert len(ids) == whole.trainer.global_step - stop_at, "no batch is lost or repeated"
    found = resumed.module.state_dict()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(found[name], value), name
    for a, b in zip(resumed.trainer.optimizers, whole.trainer.optimizers, strict=True):
        assert [g["lr"] for g in a.param_groups] == [g["lr"] for g in b.param_groups]


def test_resumed_finished_run_makes_no_update(toy_checkpoints, toy_corpus, tmp_path):
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), "freeze=false"]
    run = build(tmp_path / "a", *overrides)
    run.trainer.fit(run.module, datamodule=run.data)
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    again = build(tmp_path / "b", *overrides)
    again.trainer.fit(again.module, datamodule=again.data, ckpt_path=str(last))
    assert again.trainer.global_step == run.trainer.global_step
    for name, value in run.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name


def test_resuming_with_another_vocabulary_or_family_raises_checkpoint_error(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path / "a", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus))
    run.trainer.fit(run.module, datamodule=run.data)
    last = read_checkpoint(tmp_path / "a" / "checkpoints" / "last.ckpt")
    check_resumable(last, run.module)
    more = "tokenizer.characters=' abckz'"
    other = build(tmp_path / "b", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), more)
    with pytest.raises(CheckpointError, match="made with another tokenizer"):
        check_resumable(last, other.module)
    # Both families run in the same encoder class, so only the config tells them apart.
    family = build(tmp_path / "c", *toy_overrides(toy_checkpoints["hubert_group"], toy_corpus))
    with pytest.raises(CheckpointError, match="made with another model.config.model_type"):
        check_resumable(last, family.module)


STARTED = ["data.train=t.jsonl", "backbone=wav2vec2_base"]


def resume_with(*overrides):
    saved = {KEY: {"config": config_of(*STARTED)}}
    check_same_settings(saved, config_of(*STARTED, *overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizers.rest.lr=0.5", "optimizers.rest.lr: is 0.5, but this run was started with 0.002, which resuming"),
        ("optimizer@optimizers.rest=sgd", "optimizers.rest: is SGD, but this run was started with AdamW, which"),
        ("seed=7", "seed: is 7, but this run was started with 0, which resuming cannot change. Leave it as it was"),
        ("freeze=true", "freeze_policy: is FreezeEncoder, but this run was started with FreezeFeatureEncoder,"),
        ("backbone.layerdrop=0.3", "backbone.layerdrop: is 0.3, but this run was started with null,"),
    ],
)
def test_resuming_with_settings_that_it_cannot_change_names_key_and_values(override, message):
    with pytest.raises(ConfigError) as caught:
        resume_with(override)
    assert str(caught.value).startswith(message)


def test_resuming_names_every_key_that_it_cannot_change():
    with pytest.raises(UserErrors) as caught:
        resume_with("optimizers.encoder.lr=0.5", "optimizers.rest.lr=0.5")
    assert [error.where for error in caught.value.errors] == ["optimizers.encoder.lr", "optimizers.rest.lr"]


def test_resuming_may_change_length_files_and_machine():
    resume_with("trainer.max_epochs=99", "trainer.max_steps=9", "trainer.devices=2", "data.num_workers=1")
    resume_with("resume=auto", "verbose=false", "logger=none", "trainer.val_check_interval=0.5")
    resume_with("backbone.source=/moved/model", "backbone.gradient_checkpointing=true", "data.train=moved.jsonl")


def test_checkpoints_have_only_plain_types(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"))
    run.trainer.fit(run.module, datamodule=run.data)
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        saved = checkpoint[KEY]
        assert saved["config"]["freeze_policy"] == {"_target_": "ssl_asr.models.freezing.TrainAll"}
        assert saved["tokenizer"]["kind"] == "whisper"
        assert saved["model"]["generation"]["begin_suppress_tokens"] == [256, 7]
        assert saved["model"]["window"] == "real"
