"""The recognizers of the speed comparison work on toy models, so that `make bench-full` does not fail after hours."""

import numpy as np
import pytest

from tests.benchmarks.recognizers import ours_ctc, ours_whisper
from tests.benchmarks.turns import Runner, show, take_turns


@pytest.fixture
def posteriors(tmp_path):
    """Two files of log-probabilities over blank, unknown, "a" and "b"."""
    paths = []
    for number, best in enumerate(([0, 2, 2, 0, 3], [3, 0, 2])):
        log_probs_FV = np.full((len(best), 4), -5.0, dtype=np.float32)
        log_probs_FV[np.arange(len(best)), best] = -0.1
        paths.append(tmp_path / f"{number}.npy")
        np.save(paths[-1], log_probs_FV)
    return paths


def test_greedy_and_beam_search_run_on_posterior_files(posteriors):
    labels = ["", "", "a", "b"]
    for options in (None, {"beam_size": 4}):
        assert ours_ctc(labels=labels, options=options)(posteriors) == ["ab", "ba"]


def test_whisper_runs_on_audio_files(toy_checkpoints, tmp_path):
    np.save(tmp_path / "a.npy", 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32))
    options = {"window": "real", "tail_s": 0.5, "batch": 1, "max_tokens_per_s": 3.0}
    for beams in (1, 2):
        run = ours_whisper(model=str(toy_checkpoints["whisper"]), beams=beams, **options)
        assert len(run([tmp_path / "a.npy"])) == 1


def test_runners_take_turns_and_are_shown(posteriors, capsys):
    options = {"labels": ["", "", "a", "b"], "options": None}
    runners = [Runner("one", "ours_ctc", options), Runner("other", "ours_ctc", options)]
    take_turns(runners, [posteriors[:1], posteriors[1:]])
    assert [runner.texts for runner in runners] == [["ab", "ba"]] * 2
    show("toy", runners, ["ab", "bb"], speech_s=1.0, peers=["one"], normalizer="lower")
    # "bb" for "ba" is one of two words. The texts of both runners are equal.
    printed = capsys.readouterr().out
    assert printed.count("50.00") == 2
    assert "2 of 2" in printed
