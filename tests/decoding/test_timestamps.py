"""Whisper's timestamps against transformers' rules, and the phrases they mark."""

from types import SimpleNamespace

import pytest
import torch
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from ssl_asr.decoding.timestamps import TimestampRules, phrases

# A vocabulary of text 0 to 9, end 10, "no timestamps" 14, timestamps 15 to 34.
END, NONE, BEGIN, SIZE = 10, 14, 15, 35


@pytest.mark.parametrize("latest_first", [None, 3])
def test_the_rules_are_those_of_transformers(latest_first):
    rules = TimestampRules(begin=BEGIN, no_timestamps=NONE, end=END, latest_first=latest_first)
    config = SimpleNamespace(
        no_timestamps_token_id=NONE, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=latest_first
    )
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    generator = torch.Generator().manual_seed(0)
    histories = {0: [[]] * 4}
    histories[1] = [[15], [17], [15], [18]]
    histories[2] = [[15, 3], [15, 17], [16, 0], [18, 18]]
    histories[4] = [[15, 3, 4, 18], [15, 3, 18, 18], [15, 0, 1, 2], [15, 1, 20, 20]]
    histories[5] = [[15, 3, 18, 18, 4], [15, 3, 4, 18, 19], [15, 3, 4, 5, 34], [15, 1, 2, 20, 20]]
    for history in histories.values():
        for _ in range(5):
            logits = torch.randn(4, SIZE, generator=generator) * 2
            ids = torch.tensor([[12, *row] for row in history])
            expected = theirs(ids, logits.clone())
            own = rules(logits.clone(), torch.tensor(history, dtype=torch.int64).reshape(4, -1))
            assert torch.equal(own, expected), history


def _decode(tokens):
    return " ".join(str(token) for token in tokens if token < END)


def _phrases(tokens, duration=0.4):
    made, heard = phrases(tokens, begin=BEGIN, duration=duration, decode=_decode, score=0.5)
    return [(word.text, round(word.start, 2), round(word.end, 2)) for word in made], round(heard, 2)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # Two phrases, and a third that is cut off: it is left to the next window, which begins after the second.
        ([15, 1, 17, 17, 2, 3, 20, 21, 4], ([("1", 0.0, 0.04), ("2 3", 0.04, 0.1)], 0.1)),
        # A single timestamp at the end: nothing was said after it.
        ([15, 1, 17, 18, 2, 20], ([("1", 0.0, 0.04), ("2", 0.06, 0.1)], 0.4)),
        # One phrase, whole or without its end, is heard to the window's end.
        ([16, 1, 2, 20], ([("1 2", 0.02, 0.1)], 0.4)),
        ([16, 1, 2], ([("1 2", 0.0, 0.02)], 0.4)),
        ([1, 2], ([("1 2", 0.0, 0.4)], 0.4)),
        ([15, 16], ([], 0.4)),
        ([], ([], 0.4)),
        # No phrase ends after the recording does.
        ([15, 1, 34, 34, 2, 34], ([("1", 0.0, 0.3), ("2", 0.3, 0.3)], 0.3)),
    ],
)
def test_phrases_and_how_far_a_window_is_heard(tokens, expected):
    duration = 0.3 if tokens[2:3] == [34] else 0.4
    assert _phrases(tokens, duration) == expected


def test_a_window_is_never_heard_for_no_time_at_all():
    assert _phrases([15, 15, 1])[1] > 0
