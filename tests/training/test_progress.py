"""The progress bar: its rate, and what stands beside it."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from ssl_asr.training.progress import ProgressBar, Speed


@pytest.mark.parametrize(
    ("speed", "shown"),
    [(None, ""), (0.0, ""), (0.04, "25.0 s/batch"), (1.0, "1.0 batches/s"), (12.34, "12.3 batches/s")],
)
def test_the_rate_is_never_shown_as_zero(speed, shown):
    assert str(Speed().render(SimpleNamespace(speed=speed))) == shown


def test_lightnings_rate_is_replaced():
    bar, original = ProgressBar(), RichProgressBar()
    kinds = [type(column).__name__ for column in original.configure_columns(None)]
    assert kinds[-1] == "ProcessingSpeedColumn"
    assert [type(column).__name__ for column in bar.configure_columns(None)] == [*kinds[:-1], "Speed"]


def test_the_version_of_the_logger_is_not_shown(monkeypatch):
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: {"v_num": 3, "val/wer": 0.5})
    assert ProgressBar().get_metrics(None, None) == {"val/wer": 0.5}
