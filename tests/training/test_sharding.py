"""``trainer.strategy=fsdp2``: two ranks with shards train, score and save as one process."""

from pathlib import Path

import pytest
import torch
from rapidfuzz.distance import Levenshtein

from ssl_asr.build.restore import restore_module
from ssl_asr.errors import ConfigError
from ssl_asr.inference.testing import transcribe_tested
from ssl_asr.training.checkpoint_files import read_checkpoint, write_checkpoint
from tests.ranks import on_ranks
from tests.training.toy_runs import build, resolved, toy_overrides

SHARDED = ["trainer.devices=2", "trainer.strategy=fsdp2"]
SMALL = [
    "data.max_batch_s=1.6",
    "scheduler@schedulers.encoder=constant",
    "scheduler@schedulers.rest=constant",
    "schedulers.encoder.warmup=0",
    "schedulers.rest.warmup=0",
    "trainer.max_epochs=1",
    "trainer.num_sanity_val_steps=1",
]
SGD = ["optimizer@optimizers.encoder=sgd", "optimizer@optimizers.rest=sgd"]
# Task, checkpoint, batches in a window, and further settings. The clips bind.
SETTINGS = {
    "ctc, sgd, clip": (
        "hubert_layer",
        1,
        [*SGD, "freeze=false", "optimizers.encoder.lr=0.01", "optimizers.rest.lr=0.01"],
    ),
    "ctc, adamw, frozen feature encoder, accumulation": (
        "wav2vec2_group",
        2,
        ["freeze_policy=feature_encoder", "optimizers.encoder.eps=1e-3", "optimizers.rest.eps=1e-3"],
    ),
    "seq2seq, sgd, clip, tied embeddings": (
        "whisper",
        1,
        [*SGD, "freeze=false", "backbone.train_tail_s=null", "optimizers.encoder.lr=0.1", "optimizers.rest.lr=0.1"],
    ),
    "seq2seq, adamw, lora, only trained weights are saved": (
        "whisper",
        1,
        [
            "freeze_policy=lora",
            "freeze_policy.rank=2",
            "freeze_policy.checkpoint=adapter",
            "backbone.train_tail_s=null",
            "optimizers.encoder.lr=0.01",
            "optimizers.rest.lr=0.01",
            "optimizers.encoder.eps=1e-3",
            "optimizers.rest.eps=1e-3",
        ],
    ),
}

SLOW = {"ctc, sgd, clip", "seq2seq, adamw, lora, only trained weights are saved"}


def overrides_of(checkpoints, corpus, setting):
    name, accumulate, more = SETTINGS[setting]
    task = "seq2seq" if name == "whisper" else "ctc"
    plain = [*toy_overrides(checkpoints[name], corpus, task), *SMALL, *more, "trainer.gradient_clip_val=0.05"]
    return [*plain, *([] if task == "seq2seq" else ["head.dropout=0.0"])], accumulate


@pytest.fixture
def no_dropout(monkeypatch):
    remove_dropout(monkeypatch)


def remove_dropout(patch):
    patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
    patch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)


def train_rank(folder, overrides, resume=None, spoil=None):
    """`train` without dropout, in a process of its own."""
    remove_dropout(pytest.MonkeyPatch())
    return train(folder, overrides, resume, spoil)


def train(folder, overrides, resume=None, spoil=None):
    """Train, score the test set by the best checkpoint, and return what a rank holds and has seen."""
    torch.set_num_threads(1)
    run = build(folder, *overrides)
    if spoil is not None:
        spoil(run)
    run.trainer.fit(run.module, datamodule=run.data, ckpt_path=resume)
    metrics = {key: float(value) for key, value in run.trainer.callback_metrics.items()}
    parameters = [getattr(p, "_local_tensor", p) for p in run.module.parameters()]
    states = [
        getattr(value, "_local_tensor", value)
        for optimizer in run.trainer.optimizers
        for state in optimizer.state_dict()["state"].values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim
    ]
    held = [sum(tensor.numel() * tensor.element_size() for tensor in kind) for kind in (parameters, states)]
    updates = run.trainer.global_step
    tested = transcribe_tested(run, folder)
    return {
        "updates": updates,
        "skipped": run.module.nonfinite_updates,
        "metrics": metrics,
        "texts": {name: [(p.id, p.hyp) for p in rows] for name, rows in tested.predictions.items()},
        "bytes": held,
    }


def last(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def assert_same(found, wanted, *, atol, path=""):
    """Equal structures, with tensors that are equal to ``atol``."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), path
        for key in wanted:
            assert_same(found[key], wanted[key], atol=atol, path=f"{path}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, atol=atol, path=f"{path}.{place}")
    elif torch.is_tensor(wanted):
        torch.testing.assert_close(
            found, wanted, atol=atol, rtol=1e-4 if atol else 0, msg=lambda said: f"{path}: {said}"
        )
    else:
        assert found == wanted, path


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SETTINGS]
)
def test_shards_train_score_and_save_as_one_process(
    toy_checkpoints, toy_corpus, tmp_path, no_dropout, request, setting
):
    overrides, accumulate = overrides_of(toy_checkpoints, toy_corpus, setting)
    accumulated = f"trainer.accumulate_grad_batches={accumulate}"
    first, second = on_ranks(train_rank, 2, tmp_path / "two", [*overrides, *SHARDED, accumulated])
    request.getfixturevalue("batches_of_two_ranks")
    start = build(tmp_path / "start", *overrides).module.state_dict()
    one = train(tmp_path / "one", [*overrides, f"trainer.accumulate_grad_batches={2 * accumulate}"])
    assert first["updates"] == second["updates"] == one["updates"] > 1
    two_last, one_last = last(tmp_path / "two"), last(tmp_path / "one")
    assert_same(two_last["state_dict"], one_last["state_dict"], atol=1e-5)
    # DDP differs from one process by as much: 3e-5, in moments of gradients with norms in the thousands.
    assert_same(two_last["optimizer_states"], one_last["optimizer_states"], atol=5e-5)
    moved = [float((value - start[name]).abs().max()) for name, value in one_last["state_dict"].items()]
    assert max(moved) > 1e-3
    for key in ("val/loss", "val/wer", "train/grad_norm"):
        assert first["metrics"][key] == pytest.approx(one["metrics"][key], rel=1e-3, abs=1e-5)
    assert first["texts"] == second["texts"]
    for name, rows in one["texts"].items():
        assert [utterance for utterance, _ in rows] == [utterance for utterance, _ in first["texts"][name]]
        # Weights that differ by rounding may decide otherwise between two equally likely labels.
        errors = sum(Levenshtein.distance(a, b) for (_, a), (_, b) in zip(first["texts"][name], rows, strict=True))
        assert errors <= 0.01 * sum(len(text) for _, text in rows)
    # Each rank holds half of the parameters and of the states of optimizers, but for rounding.
    for place in (0, 1):
        assert first["bytes"][place] + second["bytes"][place] == one["bytes"][place]
        assert first["bytes"][place] <= 0.51 * one["bytes"][place]
    if "lora" not in setting:
        restored = restore_module(two_last).state_dict()
        assert all(torch.equal(restored[name], two_last["state_dict"][name]) for name in restored)


def saves_after_two_updates(run):
    plain = run.module.on_train_batch_end

    def on_train_batch_end(outputs, batch, batch_idx):
        plain(outputs, batch, batch_idx)
        if run.trainer.global_step == 2:
            run.trainer.save_checkpoint(Path(run.trainer.default_root_dir) / "two.ckpt")

    run.module.on_train_batch_end = on_train_batch_end


def twice_the_batches(path):
    """The checkpoint of two ranks for one process, which gets the batches of both ranks in turn."""
    checkpoint = torch.load(path, weights_only=True)
    loop = checkpoint["loops"]["fit_loop"]
    for counts in (loop["epoch_loop.batch_progress"][when] for when in ("total", "current")):
        counts.update({key: 2 * value for key, value in counts.items()})
    for loader in loop["state_dict"]["combined_loader"]:
        loader["batches"] *= 2
    write_checkpoint(checkpoint, path.with_name("one.ckpt"))
    return path.with_name("one.ckpt")


@pytest.mark.slow
def test_a_resumed_run_equals_the_whole_run_and_one_process_continues_it(
    toy_checkpoints, toy_corpus, tmp_path, no_dropout, request
):
    overrides, _ = overrides_of(toy_checkpoints, toy_corpus, "ctc, adamw, frozen feature encoder, accumulation")
    on_ranks(train_rank, 2, tmp_path / "whole", [*overrides, *SHARDED], None, saves_after_two_updates)
    half = tmp_path / "whole" / "two.ckpt"
    on_ranks(train_rank, 2, tmp_path / "resumed", [*overrides, *SHARDED], half)
    request.getfixturevalue("batches_of_two_ranks")
    train(tmp_path / "one", [*overrides, "trainer.accumulate_grad_batches=2"], twice_the_batches(half))
    whole, resumed, one = (last(tmp_path / name) for name in ("whole", "resumed", "one"))
    assert whole["global_step"] == resumed["global_step"] == one["global_step"] > 2
    for kind in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(resumed[kind], whole[kind], atol=0)
        assert_same(one[kind], whole[kind], atol=1e-5)


def one_is_not_finite(run):
    plain = run.module.loss

    def loss(batch, out=None):
        found = plain(batch, out)
        bad = run.trainer.global_rank == 1 and run.module.training and not run.module.nonfinite_updates
        return type(found)(found.total * float("nan"), found.count) if bad else found

    run.module.loss = loss


def first_batch_of_one_is_empty(run):
    from ssl_asr.data.dataset import collate

    plain = run.module.training_step

    def training_step(batch, batch_idx):
        empty = run.trainer.global_rank == 1 and run.trainer.global_step == 0
        plain(collate([]) if empty else batch, batch_idx)

    run.module.training_step = training_step


def test_all_ranks_skip_an_update_that_is_not_finite_on_one(toy_checkpoints, toy_corpus, tmp_path):
    overrides, _ = overrides_of(toy_checkpoints, toy_corpus, "ctc, sgd, clip")
    for rank in on_ranks(train_rank, 2, tmp_path, [*overrides, *SHARDED], None, one_is_not_finite):
        assert rank["skipped"] == 1
        assert rank["updates"] > 0
    assert all(torch.isfinite(value).all() for value in last(tmp_path)["state_dict"].values())


@pytest.mark.slow
def test_a_rank_without_readable_audio_takes_part_in_the_update(toy_checkpoints, toy_corpus, tmp_path):
    overrides, _ = overrides_of(toy_checkpoints, toy_corpus, "seq2seq, sgd, clip, tied embeddings")
    found = on_ranks(train_rank, 2, tmp_path, [*overrides, *SHARDED], None, first_batch_of_one_is_empty)
    assert [rank["skipped"] for rank in found] == [0, 0]
    assert found[0]["updates"] == found[1]["updates"] > 1


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainer.ema_decay=0.9"], "trainer.ema_decay"),
        (["trainer.compile=inductor"], "trainer.compile"),
        (["trainer.precision=16-mixed"], "trainer.precision"),
        (["freeze_policy=gradual_thaw"], "freeze_policy"),
        (["state_cache=disk", "freeze=true"], "state_cache"),
        (["backbone.layerdrop=0.1", "freeze=false"], "backbone.layerdrop"),
        (["optimizer@optimizers.rest=adamw_8bit"], "optimizers.rest"),
        (["trainer.strategy=fsdp"], "trainer.strategy"),
        (["trainer.strategy=deepspeed_stage_2"], "trainer.strategy"),
    ],
)
def test_what_does_not_work_with_shards_is_refused(overrides, key):
    with pytest.raises(ConfigError) as caught:
        resolved("data.train=t.jsonl", "trainer.strategy=fsdp2", *overrides)
    assert caught.value.where == key
