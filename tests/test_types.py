"""Records of tokens, words and segments."""

import json

import pytest

from ssl_asr.types import Segment, Token, Word

TOKEN = Token("a", 0.0, 0.5, 0.75)
WORD = Word("a", 0.0, 0.5, 0.75)


@pytest.mark.parametrize(
    ("timed", "record"),
    [
        (TOKEN, '{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75}'),
        (WORD, '{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75}'),
        (
            Word("a", 0.0, 0.5, 0.75, (TOKEN,)),
            '{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75, "tokens": '
            '[{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75}]}',
        ),
        (Segment("a", 0.0, 0.5, 0.75), '{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75}'),
        (
            Segment("a", 0.0, 0.5, 0.75, (WORD,)),
            '{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75, "words": '
            '[{"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75}]}',
        ),
    ],
)
def test_record_is_read_back_equal(timed, record):
    assert json.dumps(timed.record()) == record
    assert type(timed).from_record(json.loads(record)) == timed


def test_unknown_keys_in_a_record_are_errors():
    for kind in (Token, Word, Segment):
        with pytest.raises(TypeError):
            kind.from_record({"text": "a", "start": 0.0, "end": 0.5, "confidence": 0.75, "speaker": "b"})


def test_later_shifts_all_parts():
    segment = Segment("a", 0.0, 0.5, 0.75, (Word("a", 0.0, 0.5, 0.75, (TOKEN,)),)).later(2.0)
    (word,) = segment.words
    (token,) = word.tokens
    assert [(one.start, one.end) for one in (segment, word, token)] == [(2.0, 2.5)] * 3
