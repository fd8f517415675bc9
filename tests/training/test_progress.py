"""The progress bar: its rate, its width, its names, and what stands beside it."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from ssl_asr.config.console_log import Screen
from ssl_asr.training.progress import ProgressBar, Speed, TimeLeft


@pytest.mark.parametrize(
    ("speed", "shown"),
    [(None, ""), (0.0, ""), (0.04, "25.0 s/batch"), (1.0, "1.0 batches/s"), (12.34, "12.3 batches/s")],
)
def test_the_rate_is_never_shown_as_zero(speed, shown):
    assert str(Speed().render(SimpleNamespace(speed=speed))) == shown


@pytest.mark.parametrize(
    ("left", "finished", "shown"),
    [(None, None, ""), (7.4, None, "0:07 left"), (3723.0, None, "1:02:03 left"), (0.0, 61.0, "1:01 in all")],
)
def test_time_left(left, finished, shown):
    task = SimpleNamespace(time_remaining=left, finished=finished is not None, finished_time=finished)
    assert str(TimeLeft().render(task)) == shown


def bar_of(width, verb="Scoring"):
    """A bar on a terminal of a width, and what the terminal shows."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    return ProgressBar(console, verb=verb), output


def fit(bar, batches):
    """Run the hooks of an epoch with a validation, without Lightning's loops."""
    trainer = SimpleNamespace(
        is_global_zero=True,
        max_epochs=30,
        max_steps=-1,
        current_epoch=11,
        num_training_batches=1234,
        num_val_batches=[100],
        sanity_checking=False,
        callback_metrics={"train/loss": torch.tensor(12.3456), "val/wer": torch.tensor(1.0)},
    )
    bar.setup(trainer, None, "fit")
    bar.on_train_epoch_start(trainer, None)
    for index in range(batches):
        bar.on_train_batch_end(trainer, None, None, None, index)
    bar.on_validation_batch_start(trainer, None, None, 0)
    bar.on_validation_batch_end(trainer, None, None, None, 0)
    bar._progress.refresh()
    return trainer


def shown(output):
    screen = Screen()
    screen.write(output.getvalue())
    return [line.rstrip() for line in screen.lines if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width):
    bar, output = bar_of(width)
    fit(bar, 3)
    lines = shown(output)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Epoch 12/30")
    assert lines[1].startswith("Validating")
    assert "v_num" not in output.getvalue()
    if width >= 80:
        assert "3/1234" in lines[0]
        assert lines[0].endswith("loss 12.346, WER 100.00 %")
    bar.on_train_end(None, None)
    assert shown(output) == []


def test_loss_is_not_read_after_each_batch():
    """Reading it waits for the device."""
    read = []

    class Loss:
        def __float__(self):
            read.append(1)
            return 1.0

    bar, _ = bar_of(80)
    trainer = fit(bar, 0)
    trainer.callback_metrics = {"train/loss": Loss()}
    for index in range(100):
        bar.on_train_batch_end(trainer, None, None, None, index)
    assert len(read) <= 2
    bar.on_train_end(trainer, None)


@pytest.mark.parametrize(
    ("names", "description"), [(["input"], ["Transcribing"]), (["a", "b"], ["Transcribing a", "Transcribing b"])]
)
def test_test_loops_are_named_for_what_they_do(names, description):
    bar, output = bar_of(80, verb="Transcribing")
    data = SimpleNamespace(test_names=names)
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data, num_test_batches=[2] * len(names))
    bar.setup(trainer, None, "test")
    seen = []
    for loader in range(len(names)):
        for index in range(2):
            bar.on_test_batch_start(trainer, None, None, index, loader)
            bar.on_test_batch_end(trainer, None, None, None, index, loader)
        bar._progress.refresh()
        seen.append(shown(output)[-1])
    bar.on_test_end(trainer, None)
    assert [line[: len(text)] for line, text in zip(seen, description, strict=True)] == description
    assert all("2/2" in line for line in seen)


def test_a_rank_that_is_not_the_first_shows_nothing():
    bar, output = bar_of(80)
    bar.setup(SimpleNamespace(is_global_zero=False), None, "fit")
    bar._begin("train", "Epoch 1", 3)
    bar._update("train", 1)
    assert output.getvalue() == ""
