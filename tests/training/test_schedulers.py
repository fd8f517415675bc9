"""Learning-rate schedules: factors, warm-up, metric schedulers and the length of a run."""

import math

import pytest
import torch

from ssl_asr.errors import ConfigError
from ssl_asr.training.schedulers import (
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    NewBob,
    Noam,
    Plateau,
    TriStage,
    total_updates,
)


def _optimizer(lr=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def _rates(config, updates, total):
    optimizer = _optimizer()
    scheduler = config.build(optimizer, total)
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.scheduler.step()
    return rates


def test_schedules_equal_their_equations():
    warm = [(n + 1) / 10 for n in range(10)]
    assert _rates(Constant(warmup=10), 30, 100) == pytest.approx(warm + [1.0] * 20)
    linear = [1 - 0.9 * n / 90 for n in range(90)]
    assert _rates(Linear(warmup=0.1, final=0.1), 100, 100) == pytest.approx(warm + linear)
    cosine = [0.5 * (1 + math.cos(math.pi * n / 90)) for n in range(90)]
    assert _rates(Cosine(warmup=10, final=0.0), 100, 100) == pytest.approx(warm + cosine)
    assert _rates(Linear(warmup=0, final=0.0), 12, 10)[-2:] == [0.0, 0.0], "constant after the end of the run"


def test_tri_stage_equals_fairseq():
    """The expected factors follow the code of fairseq's scheduler, update by update."""
    expected = []
    for update in range(110):
        if update < 10:
            expected.append(0.01 + (1.0 - 0.01) / 10 * update)
        elif update < 50:
            expected.append(1.0)
        elif update < 100:
            expected.append(math.exp(-(-math.log(0.05) / 50) * (update - 50)))
        else:
            expected.append(0.05)
    assert _rates(TriStage(warmup=0.1, hold=0.4, initial=0.01, final=0.05), 110, 100) == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"60 \+ 50 of 100 updates"):
        TriStage(warmup=60, hold=50, initial=0.01, final=0.05).build(_optimizer(), 100)
    with pytest.raises(ConfigError, match="ends above 0"):
        TriStage(warmup=0.1, hold=0.4, initial=0.01, final=0.0).build(_optimizer(), 100)


def test_noam_and_inverse_sqrt_peak_at_the_end_of_the_warm_up():
    inverse = _rates(InverseSqrt(warmup=10), 40, 40)
    assert inverse[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert inverse[39] == pytest.approx(0.5)
    noam = _rates(Noam(warmup=10, width=64), 40, 40)
    assert noam == pytest.approx([rate * 64**-0.5 * 10**-0.5 for rate in inverse])


def test_invalid_warmup_raises_config_error():
    for warmup in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=f"warmup is {warmup}"):
            Linear(warmup=warmup, final=0.0).build(_optimizer(), 10)


def test_newbob_compares_with_the_previous_validation_not_the_best():
    optimizer = _optimizer()
    newbob = NewBob(factor=0.5, threshold=0.1, patience=0, monitor="val/loss").build(optimizer, 1)
    assert newbob.interval == "validation"
    rates = []
    for value in (1.0, 0.5, 0.49, 0.60, 0.40):
        newbob.scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.25, 0.25]
    other = NewBob(factor=0.5, threshold=0.1, patience=0, monitor="val/loss").build(_optimizer(), 1)
    other.scheduler.load_state_dict(newbob.scheduler.state_dict())
    assert other.scheduler.previous == 0.40


def test_newbob_waits_for_patience_validations():
    optimizer = _optimizer()
    newbob = NewBob(factor=0.5, threshold=0.1, patience=1, monitor="x").build(optimizer, 1).scheduler
    rates = []
    for _ in range(4):
        newbob.step(1.0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.5]


def test_plateau_compares_with_the_best_validation():
    optimizer = _optimizer()
    plateau = Plateau(factor=0.1, patience=1, monitor="val/loss").build(optimizer, 1)
    for value in (1.0, 1.1, 1.2):
        plateau.scheduler.step(value)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_total_updates_counts_short_windows_and_respects_the_limit():
    assert total_updates([10, 11], 1, -1) == 21
    assert total_updates([10, 11], 4, -1) == 3 + 3, "a shorter window at the end of an epoch is an update"
    assert total_updates([10, 11], 1, 15) == 15
