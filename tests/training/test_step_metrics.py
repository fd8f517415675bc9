"""Numbers of training steps: with ``log_every_n_steps``, loggers get those of these steps, unchanged."""

import math

import pytest
import torch

from ssl_asr.training.csv_log import read_curves
from tests.training.toy_runs import build, toy_overrides


def _curves(folder, checkpoint, corpus, every, *, bad=None, overrides=()):
    """What a run of ten batches logs. The loss of batch ``bad`` is not finite."""
    torch.manual_seed(0)
    run = build(
        folder,
        *toy_overrides(checkpoint, corpus),
        *("logger=csv", f"trainer.log_every_n_steps={every}", "data.max_batch_size=2", "trainer.max_epochs=2"),
        *overrides,
    )
    whole, seen = run.module.loss_parts, []

    def loss_parts(batch):
        seen.append(batch)
        total, count = whole(batch)
        return (total * math.nan if len(seen) == bad else total), count

    run.module.loss_parts = loss_parts
    run.trainer.fit(run.module, datamodule=run.data)
    return {name: dict(points) for name, points in read_curves(folder).items() if not name.startswith("val/")}


@pytest.mark.parametrize(
    ("bad", "overrides"), [(None, ()), (4, ()), (None, ("trainer.accumulate_grad_batches=2",))], ids=str
)
def test_steps_that_are_logged_have_the_numbers_of_a_run_that_logs_all(
    toy_checkpoints, toy_corpus, tmp_path, bad, overrides
):
    checkpoint = toy_checkpoints["wav2vec2_group"]
    runs = {
        every: _curves(tmp_path / str(every), checkpoint, toy_corpus, every, bad=bad, overrides=overrides)
        for every in (1, 3)
    }
    for name in ("train/loss", "train/grad_norm", "train/grad_norm/encoder", "lr/encoder", "lr/rest"):
        every, third = runs[1][name], runs[3][name]
        assert {update for update in every if update % 3 == 0} <= set(third) <= set(every)
        assert 2 <= len(third) <= len(every) / 2
        assert third == pytest.approx({update: every[update] for update in third}, rel=0, abs=0, nan_ok=True)
