"""Updates of two optimizers: equality with a hand-written loop, counting, and non-finite losses."""

import csv
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.amp.grad_scaler import GradScaler

from ssl_asr.data.dataset import collate
from ssl_asr.errors import ConfigError, TrainingError
from ssl_asr.models.encoder import LayerGroup
from ssl_asr.training.schedulers import MetricScheduler, UpdateScheduler
from ssl_asr.training.trainer import check_trained
from tests.training.toy_runs import build, parameters_of, toy_overrides

# Gradients of key biases are zero up to rounding. With a small eps, Adam would turn the rounding into full steps.
RATES = ["optimizers.encoder.lr=0.003", "optimizers.rest.lr=0.02", "optimizers.encoder.eps=1e-3"]
RATES += ["optimizers.rest.eps=1e-3"]


def optimizer_pairs(run):
    """An optimizer and a scheduler for each side that trains, each over the whole side."""
    module, optim = run.module, run.module.optim
    pairs = []
    for side, part in {"encoder": module.encoder, "rest": module.head}.items():
        if any(p.requires_grad for p in part.parameters()):
            optimizer = optim.optimizers[side].build([LayerGroup(side, (part,))])
            pairs.append((optimizer, optim.schedulers[side].build(optimizer, module.total_updates)))
    return pairs


def update_by_hand(module, pairs, window, clip, scaler):
    """Sum the losses of a window, divide once, clip all gradients together, step both optimizers."""
    count = sum(len(items) for items in window)
    for items in window:
        total = module.loss(collate(items)).total / count
        (total if scaler is None else scaler.scale(total)).backward()
    if scaler is not None:
        for optimizer, _ in pairs:
            scaler.unscale_(optimizer)
    if clip is not None:
        everything = [p for optimizer, _ in pairs for g in optimizer.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(everything, clip)
    for optimizer, schedule in pairs:
        optimizer.step() if scaler is None else scaler.step(optimizer)
        optimizer.zero_grad()
        if isinstance(schedule, UpdateScheduler):
            schedule.scheduler.step()
    if scaler is not None:
        scaler.update()


def validate_by_hand(run, pairs):
    """Step the schedulers that follow a metric on the mean loss of the dev split."""
    module = run.module
    followers = [schedule.scheduler for _, schedule in pairs if isinstance(schedule, MetricScheduler)]
    if followers:
        module.eval()
        with torch.no_grad():
            losses = [module.loss(batch) for batch in run.data.val_dataloader()[0]]
        module.train()
        for scheduler in followers:
            scheduler.step(float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses)))


def fit_by_hand(run, epochs, accumulate, clip, scaler=None):
    """Train as a plain loop, and return the number of updates."""
    run.module.train()
    pairs = optimizer_pairs(run)
    updates = 0
    for epoch in range(epochs):
        batches = [[run.data._dataset("train")[i] for i in b] for b in run.data.train_sampler(epoch)]
        for start in range(0, len(batches), accumulate):
            update_by_hand(run.module, pairs, batches[start : start + accumulate], clip, scaler)
            updates += 1
        validate_by_hand(run, pairs)
    return updates


def assert_same_parameters(module, reference):
    found = parameters_of(module)
    for name, value in parameters_of(reference).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def assert_changed(module, start):
    found = parameters_of(module)
    assert any((found[name] - start[name]).abs().max() > 1e-3 for name in found)


def settings(toy_checkpoints, toy_corpus, *more):
    # No dropout: the two loops would draw random numbers in different orders.
    return [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), "head.dropout=0.0", *RATES, *more]


@pytest.fixture
def no_dropout(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)


@pytest.mark.parametrize(
    ("accumulate", "clip", "rest"),
    [
        (1, 1000.0, "adamw"),
        (3, 0.05, "adamw"),
        (2, None, "adadelta"),
    ],
)
def test_training_equals_a_hand_written_loop(toy_checkpoints, toy_corpus, tmp_path, no_dropout, accumulate, clip, rest):
    more = [
        f"trainer.accumulate_grad_batches={accumulate}",
        f"trainer.gradient_clip_val={clip if clip is not None else 'null'}",
        f"optimizer@optimizers.rest={rest}",
        "scheduler@schedulers.rest=cosine",
        "freeze=false",
    ]
    run = build(tmp_path / "a", *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    reference = build(tmp_path / "b", *settings(toy_checkpoints, toy_corpus, *more))
    start = parameters_of(reference.module)
    updates = fit_by_hand(reference, 2, accumulate, clip)
    assert run.trainer.global_step == updates == run.module.total_updates
    assert_same_parameters(run.module, reference.module)
    assert_changed(run.module, start)


def test_loss_scale_is_removed_before_clipping_and_updated_once_per_update(
    toy_checkpoints, toy_corpus, tmp_path, no_dropout, monkeypatch
):
    """Computes in float32, so that only the handling of the loss scale can make a difference."""
    monkeypatch.setattr(MixedPrecision, "forward_context", lambda self: nullcontext())
    more = ["trainer.precision=16-mixed", "trainer.gradient_clip_val=0.05", "freeze=false"]
    run = build(tmp_path / "a", *settings(toy_checkpoints, toy_corpus, *more))
    scaler = run.trainer.precision_plugin.scaler
    scaler._init_scale = 1024.0
    scales = []
    plain = scaler.update
    scaler.update = lambda *a: (scales.append(scaler.get_scale()), plain(*a))[1]
    run.trainer.fit(run.module, datamodule=run.data)
    assert len(scales) == run.trainer.global_step == run.module.total_updates
    reference = build(tmp_path / "b", *settings(toy_checkpoints, toy_corpus, *more))
    fit_by_hand(reference, 2, 1, 0.05, GradScaler("cpu", init_scale=1024.0))
    assert_same_parameters(run.module, reference.module)


def test_all_features_together_equal_a_hand_written_loop(
    toy_checkpoints, toy_corpus, tmp_path, no_dropout, monkeypatch
):
    """AdamW with a tri-stage schedule, Adadelta with NewBob, accumulation, clipping over both, and a loss scale."""
    monkeypatch.setattr(MixedPrecision, "forward_context", lambda self: nullcontext())
    more = [
        "optimizer@optimizers.rest=adadelta",
        "scheduler@schedulers.encoder=tri_stage",
        "scheduler@schedulers.rest=newbob",
        # No epoch improves this much, so NewBob anneals after every epoch except the first.
        "schedulers.rest.threshold=0.99",
        "trainer.precision=16-mixed",
        "trainer.gradient_clip_val=0.05",
        "trainer.accumulate_grad_batches=2",
        "trainer.max_epochs=3",
        "freeze=false",
    ]
    run = build(tmp_path / "a", *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.precision_plugin.scaler._init_scale = 1024.0
    run.trainer.fit(run.module, datamodule=run.data)
    reference = build(tmp_path / "b", *settings(toy_checkpoints, toy_corpus, *more))
    start = parameters_of(reference.module)
    updates = fit_by_hand(reference, 3, 2, 0.05, GradScaler("cpu", init_scale=1024.0))
    assert run.trainer.global_step == updates
    rest = run.trainer.optimizers[1].param_groups[0]
    assert rest["lr"] == pytest.approx(0.02 * 0.5**2), "NewBob anneals after the second and the third epoch"
    assert_same_parameters(run.module, reference.module)
    assert_changed(run.module, start)


def test_search_for_a_loss_scale_is_one_line_and_no_error(toy_checkpoints, toy_corpus, tmp_path, capsys):
    more = ["trainer.precision=16-mixed", "trainer.max_nonfinite=2", "freeze=false", "trainer.max_epochs=3"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    scaler = run.trainer.precision_plugin.scaler
    scaler._init_scale = 2.0**23
    run.trainer.fit(run.module, datamodule=run.data)
    skipped = run.module.nonfinite_updates
    assert skipped > 2, "more than max_nonfinite"
    assert scaler.get_scale() == 2.0 ** (23 - skipped), "each skipped update halves the scale once"
    assert run.trainer.global_step == run.module.total_updates - skipped
    assert all(torch.isfinite(p).all() for p in run.module.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if "fp16" in line or "skipped" in line]
    # A later update can overflow at the scale that was found, and has a line of its own.
    found = [
        re.fullmatch(r"fp16: loss scale (\d+), after (\d+) updates that overflowed were skipped", x) for x in lines
    ]
    counts = [int(one[2]) for one in found]
    assert sum(counts) == skipped
    assert counts[0] > 2, "the search at the start is one line"
    assert [float(one[1]) for one in found] == [2.0 ** (23 - sum(counts[: i + 1])) for i in range(len(counts))]


def test_search_for_a_loss_scale_has_an_end(toy_checkpoints, toy_corpus, tmp_path, capsys):
    more = ["trainer.precision=16-mixed", "freeze=true", "trainer.max_epochs=30"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    # A gradient that overflows although the loss is finite.
    next(run.module.head.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    run.trainer.precision_plugin.scaler._init_scale = 2.0**-10
    with pytest.raises(TrainingError, match="gradients overflow in fp16 at any loss scale, in 7 updates in a row"):
        run.trainer.fit(run.module, datamodule=run.data)
    assert "train" not in capsys.readouterr().out


def test_loss_that_is_not_finite_is_named_with_fp16_too(toy_checkpoints, toy_corpus, tmp_path, capsys):
    more = ["trainer.precision=16-mixed", "trainer.max_nonfinite=2", "freeze=true"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    make_loss_nan_for(run, {f"train{i}" for i in range(10)})
    with pytest.raises(TrainingError, match="2 consecutive updates were not finite; the last had utterances: train"):
        run.trainer.fit(run.module, datamodule=run.data)
    assert "update skipped, a loss is not finite; utterances: train" in capsys.readouterr().out


def weighted(run, weight):
    """The run, with this weight for every utterance."""
    plain = run.module.training_step

    def training_step(batch, batch_idx):
        own = [replace(utterance, weight=weight) for utterance in batch.utterances]
        return plain(replace(batch, utterances=own), batch_idx)

    run.module.training_step = training_step
    return run


@pytest.mark.parametrize("scale", [2.0**-7, 0.5, 16.0])
def test_scale_of_all_weights_does_not_change_an_update(toy_checkpoints, toy_corpus, tmp_path, no_dropout, scale):
    """The loss is a weighted mean, so only the ratios of weights matter, also if they sum to less than 1."""
    more = ["freeze=false", "optimizer@optimizers.rest=sgd", "optimizer@optimizers.encoder=sgd", "optimizers.rest.lr=1"]
    overrides = [o for o in settings(toy_checkpoints, toy_corpus, *more) if ".eps=" not in o]
    run = weighted(build(tmp_path / "a", *overrides), scale)
    start = parameters_of(run.module)
    run.trainer.fit(run.module, datamodule=run.data)
    reference = build(tmp_path / "b", *overrides)
    reference.trainer.fit(reference.module, datamodule=reference.data)
    assert_same_parameters(run.module, reference.module)
    assert_changed(run.module, start)


def test_window_without_weight_makes_no_update_and_logs_no_nan(toy_checkpoints, toy_corpus, tmp_path):
    more = ["freeze=false", "logger=csv", "optimizers.rest.weight_decay=0.5"]
    run = weighted(build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more)), 0.0)
    start = parameters_of(run.module)
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step == 0
    with pytest.raises(TrainingError, match="ended without any update"):
        check_trained(run.trainer)
    assert run.module.nonfinite_updates == 0
    for name, value in parameters_of(run.module).items():
        assert torch.equal(value, start[name]), name
    assert "nan" not in (tmp_path / "metrics" / "metrics.csv").read_text()


def test_max_steps_counts_updates(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.max_steps=3", "trainer.max_epochs=50", "freeze=false"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step == 3 == run.module.total_updates
    check_trained(run.trainer)


def test_max_steps_of_zero_is_refused(toy_checkpoints, toy_corpus, tmp_path):
    with pytest.raises(ConfigError, match="trainer.max_steps: is 0, which trains nothing. Use a number from 1"):
        build(tmp_path, *settings(toy_checkpoints, toy_corpus, "trainer.max_steps=0"))


def test_training_data_without_weight_is_refused(toy_checkpoints, toy_corpus, tmp_path):
    rows = [json.loads(line) | {"weight": 0} for line in open(toy_corpus["train"])]
    for row in rows:
        row["audio_filepath"] = str(toy_corpus["train"].parent / row["audio_filepath"])
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"data.train: .*train\.jsonl: every utterance has weight 0"):
        build(tmp_path / "run", *settings(toy_checkpoints, toy_corpus, f"data.train={train}"))


def test_loggers_count_updates(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.accumulate_grad_batches=2", "logger=csv", "trainer.max_epochs=3", "freeze=true"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    rows = list(csv.DictReader(open(tmp_path / "metrics" / "metrics.csv")))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    assert steps[-1] == run.trainer.global_step - 1 == run.module.total_updates - 1
    assert len(rows[0]) > 5


def test_each_scheduler_steps_on_its_own_interval(toy_checkpoints, toy_corpus, tmp_path):
    more = ["scheduler@schedulers.encoder=plateau", "schedulers.encoder.patience=0", "freeze=false"]
    more += ["schedulers.encoder.monitor=val/wer", "scheduler@schedulers.rest=linear", "trainer.max_epochs=4"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    plateau, linear = (s.scheduler for s in run.module._schedulers)
    assert plateau.last_epoch == 4, "once per validation"
    assert linear.last_epoch == run.trainer.global_step, "once per update"


def make_loss_nan_for(run, ids):
    """Replace the training loss of batches that have these utterances by NaN."""
    plain = run.module.loss

    def loss(batch, out=None):
        found = plain(batch, out)
        if run.module.training and set(batch.ids) & ids:
            found = type(found)(found.total * float("nan"), found.count)
        return found

    run.module.loss = loss


def test_non_finite_update_is_skipped_by_both_optimizers_and_names_utterances(
    toy_checkpoints, toy_corpus, tmp_path, capsys
):
    more = ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=1", "freeze=false"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    make_loss_nan_for(run, {"train3"})
    seen, plain = [], run.module.loss
    run.module.loss = lambda batch, out=None: (seen.append(batch.ids), plain(batch, out))[1]
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.module.nonfinite_updates == 1
    assert run.trainer.global_step == run.module.total_updates - 1
    assert all(torch.isfinite(p).all() for p in run.module.parameters())
    printed = capsys.readouterr().out
    [line] = [line for line in printed.splitlines() if "update skipped, a loss is not finite; utterances: " in line]
    # The other batch of the window is finite.
    named = line.rpartition("utterances: ")[2].split(", ")
    assert named in [batch_ids for batch_ids in seen if "train3" in batch_ids]


def test_consecutive_non_finite_updates_raise_training_error(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.max_nonfinite=2", "freeze=false"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    make_loss_nan_for(run, {f"train{i}" for i in range(10)})
    with pytest.raises(TrainingError, match="2 consecutive updates were not finite; the last had utterances: train"):
        run.trainer.fit(run.module, datamodule=run.data)


def test_audio_that_becomes_unreadable_during_training_is_counted(toy_checkpoints, toy_corpus, tmp_path, capsys):
    folder = tmp_path / "corpus"
    shutil.copytree(toy_corpus["train"].parent, folder)
    corpus = {split: folder / path.name for split, path in toy_corpus.items()}
    more = ["data.max_batch_s=0.1", "data.max_skip_fraction=0.5"]
    run = build(tmp_path / "run", *toy_overrides(toy_checkpoints["hubert_layer"], corpus), *more)
    (folder / "train4.wav").write_text("gone bad")
    (folder / "dev1.wav").unlink()
    run.trainer.fit(run.module, datamodule=run.data)
    found = {split: [(skip.id, skip.reason) for skip in skips] for split, skips in run.module.skips.found.items()}
    assert found == {"train": [("train4", "not_audio")], "dev": [("dev1", "missing_file")]}
    lines = capsys.readouterr().err.splitlines()
    for epoch in (0, 1):
        assert f"warning: epoch {epoch}, train: 1 of 10 utterances could not be read: not_audio 1: train4" in lines
        assert f"warning: epoch {epoch}, dev: 1 of 4 utterances could not be read: missing_file 1: dev1" in lines


def test_logged_losses_and_rates_are_those_of_the_updates(toy_checkpoints, toy_corpus, tmp_path, no_dropout):
    """With a window of one batch and no decay of the rate: the mean loss before the first update, and its gradient."""
    more = ["logger=csv", "trainer.max_epochs=1", "freeze=true", "trainer.gradient_clip_val=null"]
    more += ["scheduler@schedulers.rest=constant", "schedulers.rest.warmup=0", "optimizers.rest.lr=0.25"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    reference = build(tmp_path / "other", *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    rows = list(csv.DictReader(open(tmp_path / "metrics" / "metrics.csv")))
    module = reference.module.train()
    items = [reference.data._dataset("train")[i] for i in next(iter(reference.data.train_sampler(0)))]
    assert len(items) > 1
    loss = module.loss(collate(items)).total / len(items)
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in module.parameters() if p.grad is not None]).sum().sqrt()
    first = {key: float(next(row[key] for row in rows if row[key])) for key in ("train/loss", "train/grad_norm")}
    assert first["train/loss"] == pytest.approx(float(loss), rel=1e-4)
    assert first["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert {float(row["lr/rest"]) for row in rows if row.get("lr/rest")} == {0.25}
    assert [float(row["train/nonfinite_updates"]) for row in rows if row.get("train/nonfinite_updates")] == [0.0]
