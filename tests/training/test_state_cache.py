"""Cached states train like computed states, later epochs do not run the encoder, and outdated states are refused."""

import json

import pytest
import torch

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.ranks import on_ranks
from tests.training.toy_runs import build, config_of, toy_overrides

RECIPES = {
    "last states": ("wav2vec2_group", "ctc", ["head=dnn", "head.width=8"]),
    "weighted sum, stride 2": ("hubert_layer", "ctc", ["states=weighted_sum", "states.stride=2"]),
    "chosen layer": ("wav2vec2_layer", "ctc", ["states=layer", "states.layer=1"]),
    "Whisper's encoder": ("whisper", "ctc", ["head=linear", "tokenizer=char", "decoder=ctc_greedy"]),
    "Whisper's decoder": ("whisper", "seq2seq", []),
}


def losses_of(run):
    """Train, and return the loss of each training batch and of each validation."""
    losses = []
    plain = run.module.log_train
    run.module.log_train = lambda name, value, size: (
        losses.append(float(value)) if name == "train/loss" else None,
        plain(name, value, size),
    )
    mean = run.module._mean_val_loss

    def recorded():
        losses.append(float(mean()))
        return mean()

    run.module._mean_val_loss = recorded
    run.trainer.fit(run.module, datamodule=run.data)
    return torch.tensor(losses)


def encoded_epochs(run):
    """The epoch of each forward of the encoder, filled during training."""
    encoder = run.module.speech_encoder
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(run.trainer.current_epoch))
    return calls


@pytest.mark.parametrize("name", RECIPES)
def test_cached_states_give_the_same_losses_and_only_the_first_epoch_encodes(
    toy_checkpoints, toy_corpus, tmp_path, name
):
    backbone, task, more = RECIPES[name]
    overrides = [*toy_overrides(toy_checkpoints[backbone], toy_corpus, task), *more, "freeze=true"]
    overrides = [o for o in overrides if "max_epochs" not in o] + ["trainer.max_epochs=3"]
    encoded = losses_of(build(tmp_path / "a", *overrides))
    folder = tmp_path / "states"
    cached = build(tmp_path / "b", *overrides, "state_cache=disk", f"state_cache.folder={folder}")
    calls = encoded_epochs(cached)
    read = losses_of(cached)
    assert len(encoded) > 6
    torch.testing.assert_close(read, encoded, atol=1e-4, rtol=1e-4)
    assert calls
    assert set(calls) == {0}
    # Another run on the same audio reads the states of the first.
    again = build(tmp_path / "c", *overrides, "state_cache=disk", f"state_cache.folder={folder}", "data.num_workers=1")
    calls = encoded_epochs(again)
    torch.testing.assert_close(losses_of(again), encoded, atol=1e-4, rtol=1e-4)
    assert calls == []


def test_states_are_computed_in_float32_whatever_the_precision_of_the_run(toy_checkpoints, toy_corpus, tmp_path):
    """A run in float32 must not read the states of a run in bf16."""
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus, "ctc"), "freeze=true"]
    found = []
    for precision in ("bf16-mixed", "32-true"):
        folder = tmp_path / precision / "states"
        cached = ["state_cache=disk", f"state_cache.folder={folder}", f"trainer.precision={precision}"]
        run = build(tmp_path / precision, *overrides, *cached)
        run.trainer.fit(run.module, datamodule=run.data)
        store = run.module._state_cache.store
        ids = [utterance.id for utterance in run.data.selections["train"].kept]
        found.append({one: store[one][0] for one in ids})
    assert len(found[0]) > 4
    for one, states_LFD in found[0].items():
        torch.testing.assert_close(states_LFD, found[1][one], rtol=1e-5, atol=1e-5)


def test_float16_states_take_half_the_space_and_change_losses_by_less_than_half_a_percent(
    toy_checkpoints, toy_corpus, tmp_path
):
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "freeze=true", "state_cache=disk"]
    curves, sizes = [], []
    for dtype in ("float32", "float16"):
        folder = tmp_path / f"states_{dtype}"
        run = build(tmp_path / dtype, *overrides, f"state_cache.dtype={dtype}", f"state_cache.folder={folder}")
        curves.append(losses_of(run))
        sizes.append(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
    torch.testing.assert_close(curves[1], curves[0], rtol=5e-3, atol=5e-3)
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("policy", ["freeze=false", "freeze_policy=feature_encoder", "freeze_policy=head_first"])
def test_caching_an_encoder_that_trains_raises_config_error(policy):
    with pytest.raises(ConfigError, match="state_cache: keeps the states of a frozen encoder, and this encoder trains"):
        config_of("data.train=t.jsonl", policy, "state_cache=disk")


def test_augmentation_of_cached_states_raises_config_error():
    with pytest.raises(ConfigError, match="augment: has no effect on a frozen encoder"):
        config_of("data.train=t.jsonl", "freeze=true", "state_cache=disk", "augment=spec_augment")
    with pytest.raises(
        ConfigError, match="data.speed_factors: is .*, and state_cache needs the same audio in every epoch"
    ):
        config_of("data.train=t.jsonl", "freeze=true", "state_cache=disk", "data.speed_factors=[0.9,1.0]")


def test_cached_states_of_another_window_of_other_weights_or_audio_raise_checkpoint_error(
    toy_checkpoints, toy_corpus, tmp_path
):
    def overrides(checkpoint, corpus=toy_corpus):
        made = toy_overrides(toy_checkpoints[checkpoint], corpus)
        return [*made, "freeze=true", "state_cache=disk", f"state_cache.folder={tmp_path}/s", "decoder=ctc_greedy"]

    whisper = [*overrides("whisper"), "tokenizer=char", "head=linear"]
    run = build(tmp_path / "a", *whisper)
    run.trainer.fit(run.module, datamodule=run.data)
    with pytest.raises(CheckpointError, match="has states with another origin .*encoder is .*, expected"):
        build(tmp_path / "b", *whisper, "backbone.tail_s=0.5")
    with pytest.raises(CheckpointError, match="has states with another origin .*layers is"):
        build(tmp_path / "b", *whisper, "states=weighted_sum")
    with pytest.raises(CheckpointError, match="has states with another origin .*weights is"):
        build(tmp_path / "b", *overrides("wav2vec2_layer"))
    rows = [json.loads(line) for line in open(toy_corpus["train"])]
    folder = toy_corpus["train"].parent
    for row in rows:
        row["audio_filepath"] = str(folder / row["audio_filepath"])
    rows[3]["duration"] -= 0.1
    moved = tmp_path / "train.jsonl"
    moved.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match="has states of .* from other audio of that id"):
        build(tmp_path / "b", *whisper, f"data.train={moved}", "data.check_audio=false")


def test_unreadable_audio_is_skipped_in_every_epoch(toy_checkpoints, toy_corpus, tmp_path, capsys):
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "freeze=true", "state_cache=disk"]
    rows = [json.loads(line) for line in open(toy_corpus["train"])]
    for row in rows:
        row["audio_filepath"] = str(toy_corpus["train"].parent / row["audio_filepath"])
    rows[0]["audio_filepath"] = str(tmp_path / "gone.wav")
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [
        f"data.train={train}",
        "data.check_audio=false",
        f"state_cache.folder={tmp_path}/s",
        "data.max_skip_fraction=0.1",
    ]
    run = build(tmp_path / "a", *overrides, *more)
    calls = encoded_epochs(run)
    run.trainer.fit(run.module, datamodule=run.data)
    assert [skip.id for skip in run.module.skips.found["train"]] == [rows[0]["id"]]
    assert capsys.readouterr().err.count("train: 1 of 10 utterances could not be read: missing_file 1") == 2
    assert set(calls) == {0}


def fit(folder, overrides):
    torch.set_num_threads(1)
    run = build(folder, *overrides)
    run.trainer.fit(run.module, datamodule=run.data)


def test_two_ranks_share_their_cached_states(toy_checkpoints, toy_corpus, tmp_path):
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "freeze=true", "trainer.devices=2"]
    overrides += ["trainer.strategy=ddp", "head.dropout=0", "trainer.num_sanity_val_steps=-1"]
    on_ranks(fit, 2, tmp_path / "plain", overrides)
    on_ranks(fit, 2, tmp_path / "cached", [*overrides, "state_cache=disk", f"state_cache.folder={tmp_path}/states"])
    plain, cached = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("plain", "cached"))
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(cached["state_dict"][name], value, atol=1e-5, rtol=1e-4)
    folder = tmp_path / "states"
    for rank in (0, 1):
        [index] = folder.glob(f"index-{rank}-*.jsonl")
        assert index.read_text()
