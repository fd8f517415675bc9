"""One rule says which characters no space separates. Scores, word times, alignment and subtitles follow it."""

import unicodedata

import pytest

from ssl_asr.decoding.text_alignment import written_words
from ssl_asr.decoding.word_breaks import starts_word
from ssl_asr.inference.formats.text import characters
from ssl_asr.metrics.edit import word_units
from ssl_asr.scripts import is_unspaced

# Two or more letters of a script.
UNSPACED = {
    "Han": "今天",
    "Han beyond the first plane": "\U00020000\U0002a6d6",
    "iteration mark": "人々",
    "Hiragana": "かな",
    "Katakana": "カナ",
    "prolonged sound mark": "コー",
    "half-width Katakana": "ｶﾅ",
    "Bopomofo": "ㄅㄆ",
    "Thai": "กข",
    "Thai digits": "๑๒",
    "Lao": "ກຂ",
    "Khmer": "កខ",
    "Burmese": "ကခ",
    "Burmese digits": "၁၂",
    "Tai Le": "ᥐᥑ",
    "New Tai Lue": "ᦀᦁ",
    "Tai Tham": "ᨠᨡ",
    "Yi": "ꀀꀁ",
}
SPACED = {
    "Latin": "ab",
    "Latin, decomposed": "e\u0301e",
    "full-width Latin": "ａｂ",
    "Cyrillic": "да",
    "Greek": "αβ",
    "Arabic": "نم",
    "Hebrew": "אב",
    "Devanagari": "कख",
    "Hangul": "한국",
    "Hangul letters": "\u1112\u1161\u11ab",
    "Hangul compatibility letters": "ㅎㅏ",
    "Ethiopic": "ሀለ",
    "Tibetan": "ཀཁ",
    "digits": "12",
    "punctuation": "。、",
    "middle dots": "··",
    "emoji": "😀😀",
}


@pytest.mark.parametrize("text", UNSPACED.values(), ids=UNSPACED)
def test_each_letter_of_an_unspaced_script_is_a_word_everywhere(text):
    assert all(is_unspaced(character) for character in text)
    assert word_units(f"字{text}", "")[0][1:] == list(text)
    assert starts_word(text[0], text[1])
    assert [word.text for word in written_words(text, spaced=None)] == list(text)
    small = {"コー", "人々"}  # A line does not begin with these marks.
    assert characters(text) == ([text] if text in small else list(text))


@pytest.mark.parametrize("text", SPACED.values(), ids=SPACED)
def test_other_characters_are_not_words_of_their_own(text):
    assert not any(is_unspaced(character) for character in text)
    assert not starts_word(text[0], text[1])
    assert [word.text for word in written_words(text, spaced=None)] == [text]


@pytest.mark.parametrize("text", ["ab", "да", "नम", "한국", "\u1112\u1161\u11ab", "ㅎㅏ"])
def test_lines_do_not_end_within_a_word_of_a_spaced_script(text):
    assert characters(text) == [text]


def test_every_letter_of_unicode_belongs_to_one_kind():
    # Names of characters say their script: an account of the rule that does not use the property it reads.
    names = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
    names = (*names, "BOPOMOFO", "TAI LE", "NEW TAI LUE", "TAI THAM", "YI SYLLABLE", "HALFWIDTH KATAKANA")
    for code in range(0x20000):
        character = chr(code)
        name = unicodedata.name(character, "")
        if unicodedata.category(character)[0] in "LN" and name.startswith(names):
            assert is_unspaced(character), name
        if name.startswith(("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HANGUL", "DEVANAGARI", "HALFWIDTH HANGUL")):
            assert not is_unspaced(character), name
