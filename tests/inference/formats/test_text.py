"""Where text may be broken, and its width."""

import pytest

from ssl_asr.inference.formats.text import broken, characters, clean, letters, may_part, stands_alone, width


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a\t\tb\n", "a b"),
        ("a\x00\x1fb\x7f\x9fc", "a b c"),
        ("a\u2028b\u2029c\ufeffd", "a b c d"),
        ("a\ud800b", "a\ufffdb"),
        ("a\xa0b", "a b"),
        ("", ""),
    ],
)
def test_text_is_clean(text, expected):
    assert clean(text) == expected
    assert letters(text) == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("", 0), ("日本", 4), ("ｱ", 1), ("Ａ", 2), ("e\u0301", 2), ("한", 2), ("ไทย", 3)]
)
def test_width(text, columns):
    assert width(text) == columns


@pytest.mark.parametrize(
    ("character", "expected"),
    [*((character, True) for character in "日あไကកｱ。"), *((character, False) for character in "ක한가힣aéա")],
)
def test_scripts_without_spaces(character, expected):
    assert stands_alone(character) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("日", "本", True),
        ("日", "a", True),
        ("a", "日", True),
        ("a", "b", False),
        ("日", "。", False),
        ("「", "日", False),
        ("か", "っ", False),
        ("か", "\u3099", False),
        ("ท", "ี", False),
        ("日", "\u200d", False),
        ("\u200d", "日", False),
        ("👍", "\U0001f3fb", False),
        ("👍", "\U0001f3ff", False),
        ("👍", "👍", True),
        ("한", "국", False),
    ],
)
def test_lines_end_between_characters_of_scripts_without_spaces(before, after, expected):
    assert may_part(before, after) == expected


def test_punctuation_and_marks_stay_with_their_character():
    assert characters("「今天」很好。ok日a") == ["「今", "天」", "很", "好。", "ok", "日", "a"]
    assert characters("") == []


@pytest.mark.parametrize(
    ("text", "longest", "parts"),
    [
        ("", 5, []),
        ("abcde", 5, ["abcde"]),
        ("abcdef", 5, ["abcde", "f"]),
        ("abcdefghijk", 5, ["abcde", "fghij", "k"]),
        # After the last good place in the second half of a full part.
        ("abc-efg", 6, ["abc-", "efg"]),
        ("ab-cde-gh", 8, ["ab-cde-", "gh"]),
        ("a-cdefgh", 6, ["a-cdef", "gh"]),
        ("abc/efgh", 6, ["abc/", "efgh"]),
        ("abcde日本", 6, ["abcde", "日本"]),
        ("日本日本", 4, ["日本", "日本"]),
        ("日本日本", 5, ["日本", "日本"]),
        # A character with its mark is not parted, unless the mark does not fit into a line.
        ("abe\u0301", 3, ["ab", "e\u0301"]),
        ("e\u0301", 1, ["e", "\u0301"]),
    ],
)
def test_long_words_are_broken(text, longest, parts):
    assert broken(text, longest) == parts
