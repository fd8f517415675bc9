"""Real processes that are ended at random moments, and resumed."""

import pytest

from tests.e2e.killed_runs import differences, load, overrides


@pytest.mark.slow
def test_runs_that_are_ended_at_random_moments_are_resumed_exactly(toy_checkpoints, toy_corpus, tmp_path):
    load()
    words = overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    assert differences(words, tmp_path, moments=20, seed=1) == []
