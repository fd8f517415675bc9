"""What a run may be resumed with."""

import json

import pytest

from ssl_asr.console import Notice
from ssl_asr.data.manifest import read_manifest
from ssl_asr.errors import CheckpointError, ConfigError, UserErrors
from ssl_asr.training.checkpoint_files import KEY, read_checkpoint
from ssl_asr.training.resuming import (
    check_exact,
    check_length,
    check_resumable,
    check_same_settings,
    data_description,
    say_if_finished,
)
from tests.training.toy_runs import build, config_of, toy_overrides


def test_resuming_with_another_vocabulary_or_family_raises_checkpoint_error(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path / "a", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus))
    run.trainer.fit(run.module, datamodule=run.data)
    last = read_checkpoint(tmp_path / "a" / "checkpoints" / "last.ckpt")
    check_resumable(last, run.module)
    more = "tokenizer.characters=' abckz'"
    other = build(tmp_path / "b", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), more)
    with pytest.raises(CheckpointError, match=r"resume: tokenizer\..* is .*z.*, but was .*, in the run that made"):
        check_resumable(last, other.module)
    # Both families run in the same encoder class, so only the config tells them apart.
    family = build(tmp_path / "c", *toy_overrides(toy_checkpoints["hubert_group"], toy_corpus))
    with pytest.raises(CheckpointError, match="model.config.model_type is 'hubert', but was 'wav2vec2', in the run"):
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


# Changes that are made, and named ----------------------------------------------------------------------------


@pytest.fixture
def started(toy_corpus):
    """A checkpoint of a run on two ranks."""
    data = data_description(read_manifest(toy_corpus["train"]))
    return {KEY: {"config": config_of(*STARTED), "data": data, "ranks": 2}, "global_step": 7, **_epochs(1)}


def _epochs(number):
    """What Lightning's checkpoints have of the epochs that were trained."""
    return {"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": number}}}}}


def said(recwarn, started, train, ranks, *overrides):
    check_exact(started, config_of(*STARTED, *overrides), train=train, ranks=ranks)
    return [str(each.message) for each in recwarn.list if each.category is Notice]


def test_run_with_the_same_data_and_ranks_is_exact(recwarn, started, toy_corpus):
    more = ["trainer.max_epochs=99", "data.num_workers=7", "data.eval_batch_s=9", "trainer.devices=2", "logger=none"]
    assert said(recwarn, started, read_manifest(toy_corpus["train"]), 2, *more) == []


def test_changes_of_batches_are_named_with_both_values(recwarn, started, toy_corpus):
    more = ["data.max_batch_s=7.0", "trainer.gradient_clip_val=3.0", "trainer.precision=bf16-mixed"]
    [text] = said(recwarn, started, read_manifest(toy_corpus["train"]), 1, *more)
    assert text.startswith("resume: is not exact, because this run was started with other values: data.max_batch_s ")
    for change in ("-> 7.0", "trainer.gradient_clip_val 5.0 -> 3.0", "32-true -> bf16-mixed", "number of ranks 2 -> 1"):
        assert change in text
    assert text.endswith("The rest of the epoch may repeat utterances or leave some out.")


def test_a_finished_run_refuses_values_that_would_train_nothing(started, toy_corpus):
    train = read_manifest(toy_corpus["train"])
    more = ["data.max_batch_s=7.0", "trainer.precision=bf16-mixed", "trainer.max_epochs=1"]
    with pytest.raises(ConfigError, match=r"^data.max_batch_s: is 7.0, but this run was trained with 120.0, and has"):
        check_exact(started, config_of(*STARTED, *more), train=train, ranks=1)
    with pytest.raises(ConfigError, match=r"^data.train: is 9, but this run was trained with 10, and has made all"):
        check_exact(started, config_of(*STARTED, "trainer.max_steps=7"), train=train.select(range(9)), ranks=2)
    check_exact(started, config_of(*STARTED, "trainer.max_epochs=1", "trainer.accelerator=cpu"), train=train, ranks=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[:-1], "training utterances 10 -> 9."),
        (lambda rows: rows[::-1], "training utterances 10 -> 10, others or in another order."),
        (lambda rows: [rows[0] | {"text": "other words"}, *rows[1:]], "10 -> 10, others or in another order."),
    ],
    ids=["shorter", "reordered", "another text"],
)
def test_another_manifest_is_named(recwarn, started, toy_corpus, tmp_path, change, named):
    rows = change([json.loads(line) for line in toy_corpus["train"].open()])
    path = tmp_path / "moved.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [text] = said(recwarn, started, read_manifest(path), 2)
    assert named in text
    path.write_text(toy_corpus["train"].read_text())
    recwarn.clear()
    assert said(recwarn, started, read_manifest(path), 2) == [], "a manifest that has only moved"


def test_checkpoint_knows_its_data_and_ranks(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), "trainer.max_steps=1")
    run.trainer.fit(run.module, datamodule=run.data)
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")[KEY]
    assert (saved["data"]["utterances"], saved["ranks"]) == (10, 1)
    assert saved["data"] == data_description(read_manifest(toy_corpus["train"]))


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "message"),
    [
        (4, -1, None),
        (9, 20, None),
        (3, -1, "trainer.max_epochs: is 3, but the run to resume is in epoch 4"),
        (1, -1, "trainer.max_epochs: is 1"),
        (9, 19, "trainer.max_steps: is 19, but the run to resume has made 20 updates"),
    ],
)
def test_a_run_that_is_longer_than_allowed_is_not_resumed(max_epochs, max_steps, message):
    checkpoint = {"epoch": 3, "global_step": 20}
    if message is None:
        check_length(checkpoint, max_epochs=max_epochs, max_steps=max_steps)
    else:
        with pytest.raises(ConfigError, match=message):
            check_length(checkpoint, max_epochs=max_epochs, max_steps=max_steps)


def test_a_finished_run_names_the_limit_that_ended_it(recwarn):
    say_if_finished(29, 30, max_steps=30)
    assert not recwarn
    for max_steps, key in ((30, "max_steps"), (-1, "max_epochs"), (99, "max_epochs")):
        with pytest.warns(Notice, match=f"Use a larger trainer.{key} to train longer"):
            say_if_finished(30, 30, max_steps=max_steps)
