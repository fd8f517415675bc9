"""Fixtures of training on several ranks."""

import pytest

from ssl_asr.data import sampler


@pytest.fixture
def batches_of_two_ranks(monkeypatch):
    """One process that gets the batches of two ranks in turn."""
    plan = sampler.plan_epoch
    monkeypatch.setattr(sampler, "plan_epoch", lambda *a, **k: plan(*a, **{**k, "world_size": 2}))
