"""Contract 4: two optimizers, against a loop written by hand."""

import csv
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.amp.grad_scaler import GradScaler

from ssl_asr.data.dataset import collate
from ssl_asr.errors import TrainingError
from ssl_asr.models.encoder import LayerGroup
from ssl_asr.training.schedulers import MetricScheduler, UpdateScheduler
from tests.training.toy_runs import build, toy_overrides

# A large eps, or Adam makes whole steps of the rounding in gradients that are zero (those of key biases).
RATES = ["optimizers.encoder.lr=0.003", "optimizers.rest.lr=0.02", "optimizers.encoder.eps=1e-3"]
RATES += ["optimizers.rest.eps=1e-3"]


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def by_hand(run, epochs, accumulate, clip, scaler=None):
    """The same run as a plain loop: sums over the window, one division, one clip over everything, two steps."""
    module, optim = run.module, run.module.optim
    module.train()
    sides = {"encoder": module.encoder, "rest": module.head}
    pairs = []
    for side, part in sides.items():
        if any(p.requires_grad for p in part.parameters()):
            optimizer = optim.optimizers[side].build([LayerGroup(side, (part,))])
            pairs.append((optimizer, optim.schedulers[side].build(optimizer, module.total_updates)))
    everything = [p for optimizer, _ in pairs for g in optimizer.param_groups for p in g["params"]]
    updates = 0
    for epoch in range(epochs):
        batches = [[run.data._dataset("train")[i] for i in b] for b in run.data.train_sampler(epoch)]
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            count = sum(len(items) for items in window)
            for items in window:
                total = module.loss(collate(items)).total / count
                (total if scaler is None else scaler.scale(total)).backward()
            if scaler is not None:
                for optimizer, _ in pairs:
                    scaler.unscale_(optimizer)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(everything, clip)
            for optimizer, schedule in pairs:
                optimizer.step() if scaler is None else scaler.step(optimizer)
                optimizer.zero_grad()
                if isinstance(schedule, UpdateScheduler):
                    schedule.scheduler.step()
            if scaler is not None:
                scaler.update()
            updates += 1
        waiting = [schedule.scheduler for _, schedule in pairs if isinstance(schedule, MetricScheduler)]
        if waiting:
            module.eval()
            with torch.no_grad():
                losses = [module.loss(batch) for batch in run.data.val_dataloader()[0]]
            module.train()
            for scheduler in waiting:
                scheduler.step(float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses)))
    return updates


def settings(toy_checkpoints, toy_corpus, *more):
    # No dropout: the loop by hand must draw no random numbers in another order.
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
def test_training_equals_the_loop_by_hand(toy_checkpoints, toy_corpus, tmp_path, no_dropout, accumulate, clip, rest):
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
    start = snapshot(reference.module)
    updates = by_hand(reference, 2, accumulate, clip)
    assert run.trainer.global_step == updates == run.module.total_updates
    end = snapshot(run.module)
    for name, value in snapshot(reference.module).items():
        torch.testing.assert_close(end[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert any((end[name] - start[name]).abs().max() > 1e-3 for name in end)


def test_the_fp16_scaler_is_used_right(toy_checkpoints, toy_corpus, tmp_path, no_dropout, monkeypatch):
    """Unscaled before clipping, updated once an update, the same scale for both optimizers.

    In float32, where nothing but the handling of the scale can make a difference.
    """
    monkeypatch.setattr(MixedPrecision, "forward_context", lambda self: nullcontext())
    more = ["trainer.precision=16-mixed", "trainer.gradient_clip_val=0.05", "freeze=false"]
    run = build(tmp_path / "a", *settings(toy_checkpoints, toy_corpus, *more))
    scaler = run.trainer.precision_plugin.scaler
    scaler._init_scale = 1024.0
    seen = []
    plain = scaler.update
    scaler.update = lambda *a: (seen.append(scaler.get_scale()), plain(*a))[1]
    run.trainer.fit(run.module, datamodule=run.data)
    assert len(seen) == run.trainer.global_step == run.module.total_updates
    reference = build(tmp_path / "b", *settings(toy_checkpoints, toy_corpus, *more))
    by_hand(reference, 2, 1, 0.05, GradScaler("cpu", init_scale=1024.0))
    end = snapshot(run.module)
    for name, value in snapshot(reference.module).items():
        torch.testing.assert_close(end[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_everything_at_once_equals_the_loop_by_hand(toy_checkpoints, toy_corpus, tmp_path, no_dropout, monkeypatch):
    """AdamW under tri-stage and Adadelta under NewBob, accumulation, one clip over both, the fp16 scaler."""
    monkeypatch.setattr(MixedPrecision, "forward_context", lambda self: nullcontext())
    more = [
        "optimizer@optimizers.rest=adadelta",
        "scheduler@schedulers.encoder=tri_stage",
        "scheduler@schedulers.rest=newbob",
        # No epoch is that much better than the last: NewBob anneals after each but the first.
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
    start = snapshot(reference.module)
    updates = by_hand(reference, 3, 2, 0.05, GradScaler("cpu", init_scale=1024.0))
    assert run.trainer.global_step == updates
    new = run.trainer.optimizers[1].param_groups[0]
    assert new["lr"] == pytest.approx(0.02 * 0.5**2), "annealed after the second and the third epoch"
    end = snapshot(run.module)
    for name, value in snapshot(reference.module).items():
        torch.testing.assert_close(end[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert any((end[name] - start[name]).abs().max() > 1e-3 for name in end)


def test_real_fp16_overflows_and_recovers(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.precision=16-mixed", "trainer.max_nonfinite=40", "freeze=false", "trainer.max_epochs=3"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    scaler = run.trainer.precision_plugin.scaler
    scaler._init_scale = 2.0**40
    run.trainer.fit(run.module, datamodule=run.data)
    skipped = run.module.nonfinite_updates
    assert skipped > 0
    assert scaler.get_scale() == 2.0 ** (40 - skipped), "halved once for each update that was skipped"
    assert run.trainer.global_step == run.module.total_updates - skipped
    assert all(torch.isfinite(p).all() for p in run.module.parameters())


def test_two_pairs_or_one(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, "freeze=false"))
    optimizers, schedulers = run.module.configure_optimizers()
    assert [len(optimizers), len(schedulers)] == [2, 2]
    encoder = {id(p) for p in run.module.encoder.parameters() if p.requires_grad}
    first, second = ({id(p) for g in o.param_groups for p in g["params"]} for o in optimizers)
    assert first == encoder
    assert second == {id(p) for p in run.module.head.parameters()}
    frozen = build(tmp_path, *settings(toy_checkpoints, toy_corpus, "freeze=true"))
    optimizers, schedulers = frozen.module.configure_optimizers()
    assert [len(optimizers), len(schedulers)] == [1, 1]


def test_max_steps_counts_updates(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.max_steps=3", "trainer.max_epochs=50", "freeze=false"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step == 3 == run.module.total_updates


def test_loggers_count_updates(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.accumulate_grad_batches=2", "logger=csv", "trainer.max_epochs=3", "freeze=true"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    rows = list(csv.DictReader(open(tmp_path / "metrics" / "metrics.csv")))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    assert steps[-1] == run.trainer.global_step - 1 == run.module.total_updates - 1
    assert len(rows[0]) > 5


def test_schedulers_step_on_their_own_interval(toy_checkpoints, toy_corpus, tmp_path):
    more = ["scheduler@schedulers.encoder=plateau", "schedulers.encoder.patience=0", "freeze=false"]
    more += ["schedulers.encoder.monitor=val/wer", "scheduler@schedulers.rest=linear", "trainer.max_epochs=4"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    run.trainer.fit(run.module, datamodule=run.data)
    plateau, linear = (s.scheduler for s in run.module._schedulers)
    assert plateau.last_epoch == 4, "once a validation"
    assert linear.last_epoch == run.trainer.global_step, "once an update"


@pytest.mark.parametrize("policy", ["freeze=true", "freeze_policy=feature_encoder"])
@pytest.mark.parametrize("name", ["wav2vec2_group", "wavlm_layer", "whisper"])
def test_frozen_is_frozen(toy_checkpoints, toy_corpus, tmp_path, policy, name):
    run = build(tmp_path, *toy_overrides(toy_checkpoints[name], toy_corpus), policy)
    module = run.module
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    before = snapshot(module)
    run.trainer.fit(module, datamodule=run.data)
    after = snapshot(module)
    assert frozen
    for parameter in before:
        same = torch.equal(before[parameter], after[parameter])
        assert same or parameter not in frozen, parameter
    assert not torch.equal(before["head.layers.1.weight"], after["head.layers.1.weight"])
    module.train()
    if policy == "freeze=true":
        assert not any(m.training for m in module.encoder.modules())
        batch = next(iter(run.data.val_dataloader()[0]))
        a, b = (module.encoder(batch.waveform_BT, batch.lengths_B).h_BFD for _ in range(2))
        assert torch.equal(a, b), "two forwards in train mode must agree"
        log_probs, _ = module.log_probs(batch)
        assert log_probs.requires_grad
        assert not module.encode(batch).h_BFD.requires_grad


def _poison(run, ids):
    """A loss that is NaN for these utterances."""
    plain = run.module.loss

    def loss(batch, states=None):
        out = plain(batch, states)
        if run.module.training and set(batch.ids) & ids:
            out = type(out)(out.total * float("nan"), out.count)
        return out

    run.module.loss = loss


def test_a_non_finite_update_is_skipped_whole_and_named(toy_checkpoints, toy_corpus, tmp_path, capsys):
    more = ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=1", "freeze=false"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    _poison(run, {"train3"})
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.module.nonfinite_updates == 1
    assert run.trainer.global_step == run.module.total_updates - 1
    assert all(torch.isfinite(p).all() for p in run.module.parameters())
    said = capsys.readouterr().out
    assert "update skipped" in said
    assert "train3" in said


def test_several_in_a_row_end_the_run(toy_checkpoints, toy_corpus, tmp_path):
    more = ["trainer.max_nonfinite=2", "freeze=false"]
    run = build(tmp_path, *settings(toy_checkpoints, toy_corpus, *more))
    _poison(run, {f"train{i}" for i in range(10)})
    with pytest.raises(TrainingError, match="2 updates in a row were not finite; the last saw train"):
        run.trainer.fit(run.module, datamodule=run.data)


def test_audio_that_turns_bad_during_the_run_is_counted(toy_checkpoints, toy_corpus, tmp_path):
    import shutil

    folder = tmp_path / "corpus"
    shutil.copytree(toy_corpus["train"].parent, folder)
    corpus = {split: folder / path.name for split, path in toy_corpus.items()}
    run = build(tmp_path / "run", *toy_overrides(toy_checkpoints["hubert_layer"], corpus), "data.max_batch_s=0.1")
    (folder / "train4.wav").write_text("gone bad")
    (folder / "dev1.wav").unlink()
    run.trainer.fit(run.module, datamodule=run.data)
    skipped = [(s.id, s.reason) for s in run.module.skipped_audio["train"]]
    assert skipped == [("train4", "not_audio")] * 2, "once an epoch, in a batch of its own"
    assert [(s.id, s.reason) for s in run.module.skipped_audio["dev"]] == [("dev1", "missing_file")]


def test_seq2seq_loss_is_the_mean_over_every_token_end_included(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"))
    module = run.module.eval()
    [batch] = list(run.data.val_dataloader()[0])[:1]
    out = module.loss(batch)
    total, count = 0.0, 0
    for row, utterance in enumerate(batch.utterances):
        n = int(batch.lengths_B[row])
        encoded = module.model.encoder(batch.waveform_BT[row : row + 1, :n], batch.lengths_B[row : row + 1])
        targets = module.tokenizer.encode(utterance)
        whole = torch.tensor([module.tokenizer.prompt(utterance) + targets])
        states = module.model(whole[:, :-1], encoded.h_BFD, encoded.context_lengths_B)
        log_probs = module.model.logits(states)[0].log_softmax(-1)
        for place, token in enumerate(targets):
            total -= float(log_probs[1 + place, token])
            count += 1
    assert int(out.count) == count
    assert float(out.total) == pytest.approx(total, rel=1e-4)


def test_ctc_loss_equals_torchs_mean(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["wavlm_layer"], toy_corpus))
    module = run.module.eval()
    batch = next(iter(run.data.val_dataloader()[0]))
    out = module.loss(batch)
    log_probs, frames = module.log_probs(batch)
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), batch.tokens_BU, frames, batch.token_lengths_B, blank=0, reduction="mean"
    )
    torch.testing.assert_close(out.total / out.count, expected)
