"""What a training step asks of Lightning and of the device: numbers that loggers write, and one transfer."""

from collections import defaultdict

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import LambdaCallback

from ssl_asr.training.csv_log import read_curves
from ssl_asr.training.trainer import make_trainer
from tests.training.toy_runs import build, toy_overrides
from tests.waits import count_waits

NAMES = {"train/loss", "train/grad_norm", "train/grad_norm/encoder", "train/grad_norm/rest", "lr/encoder", "lr/rest"}


@pytest.fixture
def toy_run(toy_checkpoints, toy_corpus, tmp_path):
    """A run of one epoch without validation, which writes every third update."""
    overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    return lambda *own: build(
        tmp_path,
        *(*overrides, "data.dev=null", "data.max_batch_size=1", "logger=csv", "trainer.max_epochs=1"),
        *("trainer.log_every_n_steps=3", *own),
    )


def fit(run):
    """Train, and return the names that are logged in each step, by the number of updates after it."""
    module, names = run.module, defaultdict(list)
    plain = module.log

    def log(name, *args, on_step=False, **kwargs):
        if on_step:
            names[run.trainer.global_step].append(name)
        plain(name, *args, on_step=on_step, **kwargs)

    module.log = log
    run.trainer.fit(module, datamodule=run.data)
    return names


def test_lightning_gets_numbers_only_in_steps_that_are_written_or_that_callbacks_need(toy_run):
    run = toy_run()
    names = fit(run)
    updates = run.trainer.global_step
    assert updates >= 8
    assert set(names) == {1, *range(3, updates + 1, 3), updates}
    for logged in names.values():
        assert sorted(logged) == sorted({*NAMES, *(["train/masked_share"] if "train/masked_share" in logged else [])})


def test_last_update_of_max_steps_is_written_with_its_own_numbers(toy_run, tmp_path):
    run = toy_run("trainer.max_steps=5")
    losses, plain = [], run.module.loss_parts

    def loss_parts(batch):
        total, count = plain(batch)
        losses.append(float(total / count))
        return total, count

    run.module.loss_parts = loss_parts
    assert set(fit(run)) == {1, 3, 5}
    written = dict(read_curves(tmp_path)["train/loss"])
    assert {update: written[update] for update in (3, 5)} == pytest.approx({3: losses[2], 5: losses[4]}, rel=1e-6)


def test_update_transfers_numbers_from_the_device_once(toy_run):
    run = toy_run("trainer.log_every_n_steps=1")
    plain, waits = run.module._update, []

    def update():
        with count_waits() as found:
            plain()
        waits.append(dict(found))

    run.module._update = update
    run.trainer.fit(run.module, datamodule=run.data)
    assert waits == [{"Tensor.tolist": 1}] * run.trainer.global_step


class Mine(Callback):
    """Counts two hooks, one of which is defined by its class and one by a user of the object."""

    def __init__(self):
        self.calls = []
        self.on_after_backward = lambda trainer, module: self.calls.append("backward")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.calls.append("batch")


def test_hooks_that_do_nothing_are_skipped_and_all_others_are_called(toy_run, tmp_path):
    run = toy_run("trainer.max_steps=2")
    mine, calls = Mine(), []
    own = LambdaCallback(on_before_backward=lambda trainer, module, loss: calls.append("before"))
    trainer = make_trainer(run.config.trainer, folder=tmp_path, loggers=[], callbacks=[mine, own], console=None)
    trainer.fit(run.module, datamodule=run.data)
    assert mine.calls == ["backward", "batch"] * 2
    assert calls == ["before"] * 2
    assert mine.on_before_backward is None
    assert own.on_after_backward is None
    # A class that extends a callback may call the hook that it inherits.
    assert super(Mine, mine).on_before_backward(trainer, run.module, None) is None
