"""Whisper's timestamp rules against transformers, and the segments that timestamps mark."""

from types import SimpleNamespace

import pytest
import torch
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from ssl_asr.decoding.timestamps import TimestampRules, phrases_of, segments_of, text_tokens

# A vocabulary with text 0 to 9, end token 10, "no timestamps" 14 and timestamps 15 to 34.
END, NONE, BEGIN, SIZE = 10, 14, 15, 35


@pytest.mark.parametrize("latest_first", [None, 3])
def test_rules_equal_transformers(latest_first):
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


def _segments(tokens, duration=0.4):
    segments, next_start = segments_of(tokens, begin=BEGIN, duration=duration, decode=_decode, score=0.5)
    return [(one.text, round(one.start, 2), round(one.end, 2)) for one in segments], round(next_start, 2)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # Two segments, and an unfinished third. The next window starts after the second.
        ([15, 1, 17, 17, 2, 3, 20, 21, 4], ([("1", 0.0, 0.04), ("2 3", 0.04, 0.1)], 0.1)),
        # A single timestamp at the end: no speech after it.
        ([15, 1, 17, 18, 2, 20], ([("1", 0.0, 0.04), ("2", 0.06, 0.1)], 0.4)),
        # Without a pair of timestamps, the next window starts at the end of this one.
        ([16, 1, 2, 20], ([("1 2", 0.02, 0.1)], 0.4)),
        ([16, 1, 2], ([("1 2", 0.0, 0.02)], 0.4)),
        ([1, 2], ([("1 2", 0.0, 0.4)], 0.4)),
        ([15, 16], ([], 0.4)),
        ([], ([], 0.4)),
        # Segments end within the recording.
        ([15, 1, 34, 34, 2, 34], ([("1", 0.0, 0.3), ("2", 0.3, 0.3)], 0.3)),
    ],
)
def test_segments_and_start_of_next_window(tokens, expected):
    duration = 0.3 if tokens[2:3] == [34] else 0.4
    assert _segments(tokens, duration) == expected


def test_next_window_never_starts_at_zero():
    assert _segments([15, 15, 1])[1] > 0


def _phrases(tokens, duration=0.4):
    phrases, _ = phrases_of(tokens, begin=BEGIN, duration=duration)
    return phrases


def test_unfinished_text_is_a_phrase_as_well():
    tokens = [15, 1, 17, 17, 2, 3]
    first, second = _phrases(tokens)
    assert (first.first, first.end, first.complete) == (0, 3, True)
    assert (second.first, second.end, second.complete) == (3, 6, False)
    assert [second.start_s, second.end_s] == pytest.approx([0.04, 0.4])
    assert text_tokens(tokens, [first, second], end=END, spell=_decode) == [[1], [2, 3]]


def test_no_time_is_later_than_the_audio():
    for tokens in ([15, 1, 30, 30, 2, 34], [20, 1, 34], [15, 1, 30, 30, 2]):
        phrases, next_start = phrases_of(tokens, begin=BEGIN, duration=0.1)
        assert all(0 <= one.start_s <= one.end_s <= 0.1 for one in phrases)
        assert next_start == 0.1


def test_bytes_of_a_character_on_both_sides_of_a_timestamp_stay_together():
    pieces = {1: b" no", 2: b"\xe5", 3: b"\xa5", 4: b"\xbd", 5: b" ok"}

    def spell(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    tokens = [15, 1, 2, 17, 17, 3, 4, 5, 20, 20, 2]
    groups = text_tokens(tokens, _phrases(tokens), end=END, spell=spell)
    assert groups == [[1, 2, 3, 4], [5], [2]]
    broken = [15, 2, 17, 17, 5, 20, 20]
    assert text_tokens(broken, _phrases(broken), end=END, spell=spell) == [[2], [5], []]


def test_a_character_of_four_bytes_may_have_three_of_them_after_the_timestamp():
    pieces = {1: b" ok", 2: b"\xf0", 3: b"\x9f", 4: b"\x98", 5: b"\x80", 6: b"!"}

    def spell(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    tokens = [15, 1, 2, 17, 17, 3, 4, 5, 6, 20, 20]
    assert text_tokens(tokens, _phrases(tokens), end=END, spell=spell) == [[1, 2, 3, 4, 5], [6], []]
