"""Where words begin, in scripts with and without spaces."""

import unicodedata

import pytest

from ssl_asr.decoding.word_breaks import is_spoken, is_unspaced, joined_text, space_between, starts_word


def _words(pieces):
    words = []
    for piece in pieces:
        if starts_word(words[-1] if words else "", piece):
            words.append(piece)
        else:
            words[-1] += piece
    return words


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" so", ",", " it", "'s", " fine", "."], [" so,", " it's", " fine."]),
        ([" the", " (", "old", ")", " man"], [" the", " (old)", " man"]),
        ([" wait", " -", " no", " ..."], [" wait", " -", " no", " ..."]),
        ([" 3", ".", "5", "%"], [" 3.5%"]),
        (["今天", "天", "气", "好", "，", "走", "吧", "。"], ["今天", "天", "气", "好，", "走", "吧。"]),
        (["他", "说", "「", "好", "」", "。"], ["他", "说", "「好」。"]),
        (["我", "用", " Py", "thon", "3", "写"], ["我", "用", " Python3", "写"]),
        (["我", "用", "Py", "thon", "写"], ["我", "用", "Python", "写"]),
        (["使", "う", "Word", "（", "版", "）"], ["使", "う", "Word", "（版）"]),
        # Thai vowels and tone marks, am included, stay with their consonant.
        (["น", "้", "ำ", "ด", "ี"], ["น้ำ", "ดี"]),
        # Lao, Khmer with a subscript consonant, Burmese with a stacked one.
        (["ລ", "າ", "ວ"], ["ລ", "າ", "ວ"]),
        (["ខ", "្", "ម", "ែ", "រ"], ["ខ្មែ", "រ"]),
        (["မ", "န", "္", "တ", "လ", "ေ", "း"], ["မ", "န္တ", "လေး"]),
        # Devanagari, Arabic, Hebrew and Korean have spaces.
        ([" न", "म", "स", "्", "ते", " जी"], [" नमस्ते", " जी"]),
        ([" مر", "حبا", "،", " بك"], [" مرحبا،", " بك"]),
        ([" של", "ום", " עולם"], [" שלום", " עולם"]),
        ([" 안", "녕", " 하"], [" 안녕", " 하"]),
        ([" well", " 😀", "‍", "💻", " ok"], [" well", " 😀‍💻", " ok"]),
        (["好", "😀", "的"], ["好😀", "的"]),
        ([" ", "one", " ", " two"], [" one", " ", " two"]),
    ],
)
def test_pieces_are_joined_to_words(pieces, expected):
    assert _words(pieces) == expected


def test_punctuation_is_not_spoken_but_signs_and_unknown_labels_are():
    assert not any(is_spoken(text) for text in ["", " ", ",", "...", "「", "’", "—", "😀", "،", "।"])
    assert all(is_spoken(text) for text in ["a", "5", "%", "&", "$", "+", "好", "ा", "⁇", "\ufffd", " 'tis"])
    assert not any(is_unspaced(c) for c in "aéд안नש。、1 ")
    assert all(is_unspaced(c) for c in "好かカｶ々ไລမក𠀀")


def test_texts_of_parts_are_joined_with_spaces_where_the_script_has_them():
    assert joined_text(["One.", "", "Two"]) == "One. Two"
    assert joined_text(["今天。", "天气"]) == "今天。天气"
    assert joined_text(["用 Python", "Java 好"]) == "用 Python Java 好"
    assert joined_text([]) == joined_text([""]) == ""
    assert space_between("...", "...")
    assert not space_between("น้ำ", "ดี")


# First and last code points of Unicode's blocks.
BLOCKS = [
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x19E0, 0x19FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]:X}")
def test_scripts_without_spaces_begin_and_end_with_their_blocks(block):
    first, last = block
    for code in range(first, last + 1, max(1, (last - first) // 200)):
        assert is_unspaced(chr(code)) != unicodedata.category(chr(code)).startswith("P"), hex(code)
    assert is_unspaced(chr(first))
    assert is_unspaced(chr(last))
    assert not is_unspaced(chr(first - 1))
    assert not is_unspaced(chr(last + 1))
