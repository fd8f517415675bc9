"""Where words begin, in scripts with and without spaces."""

import pytest

from ssl_asr.decoding.word_breaks import is_spoken, joined_text, space_between, starts_word


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


def test_texts_of_parts_are_joined_with_spaces_where_the_script_has_them():
    assert joined_text(["One.", "", "Two"]) == "One. Two"
    assert joined_text(["今天。", "天气"]) == "今天。天气"
    assert joined_text(["用 Python", "Java 好"]) == "用 Python Java 好"
    assert joined_text([]) == joined_text([""]) == ""
    assert space_between("...", "...")
    assert not space_between("น้ำ", "ดี")
