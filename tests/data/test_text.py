"""Text normalizers."""

import json
import re
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from ssl_asr.data.languages import find_language
from ssl_asr.data.text import NORMALIZERS, _basic_normalizer, _english_normalizer, get_normalizer
from ssl_asr.errors import ConfigError
from ssl_asr.metrics.edit import char_edits, wer_unit, word_edits, word_units

README = Path(__file__).parent / "README.md"
SCRIPTS = "Latn Grek Cyrl Arab Hebr Deva Beng Sinh Thai Hani Kana Hang Ethi Tibt Geor".split()  # noqa: SIM905


@pytest.mark.parametrize(
    ("name", "lang", "text", "expected"),
    [
        ("none", None, "  Héllo,\tWorld ", "Héllo, World"),
        ("none", None, unicodedata.normalize("NFD", "é"), "é"),
        ("lower", None, "Hello, World", "hello, world"),
        ("lower", "tr", "ISPARTA İzmir", "ısparta izmir"),
        ("lower", "de", "STRASSE Öl", "strasse öl"),
        ("basic", "fr", "L'été, c’est «beau»!", "l'été c'est beau"),
        ("basic", None, "'quoted' rock-n-roll 5%", "quoted rock n roll 5"),
        ("basic", "hi", "हिन्दी में।", "हिन्दी में"),
        ("basic", "th", "ที่นี่", "ที่นี่"),
        ("whisper_english", None, "Mr. Smith's colour isn't twenty-one.", "mister smith is color is not 21"),
        ("by_language", "en", "It's two of them", "it is 2 of them"),
        ("by_language", "de", "Größe: zwei!", "größe zwei"),
        ("by_language", "zh-CN", "你好，世界", "你好 世界"),
        ("by_language", "en_us", "I’ve 20 colours", "i have 20 colors"),
        ("by_language", "eng", "two colours", "2 colors"),
        ("by_language", "English", "two colours", "2 colors"),
        ("lower", "tr-TR", "ILIK", "ılık"),
        ("lower", "tur", "ILIK", "ılık"),
        ("lower", "Turkish", "ILIK", "ılık"),
        ("by_language", "tr_tr", "ILIK İz", "ılık iz"),
        ("basic", "azj-script_latin", unicodedata.normalize("NFD", "Iİ"), "ıi"),
        ("basic", None, "Ο.Σ. ΟΣ", "ο σ ος"),
        ("basic", "ml", "അവന്\u200d", "അവന്"),
        ("none", "ml", "അവന്\u200d", "അവന്\u200d"),
        ("none", "fa", "می\u200cخواهم\u200c", "می\u200cخواهم"),
        ("by_language", None, "Hello!", "hello"),
    ],
)
def test_examples_of_each_normalizer(name, lang, text, expected):
    assert get_normalizer(name)(text, lang) == expected


def _table(heading):
    """Rows of the table whose heading starts with the given cell, without the code marks and with real characters."""
    text = README.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    for line in lines[start + 2 :]:
        if line.startswith("| reference |"):
            break
        cells = [cell.strip().removeprefix("`").removesuffix("`") for cell in line.split("|")[1:-1]]
        yield [re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), cell) for cell in cells]


ROWS = list(_table("lang"))


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_rows_of_the_table_hold(row):
    lang, text, *expected = row
    names = ("none", "lower", "basic", "whisper_basic", "whisper_english")
    assert [get_normalizer(name)(text, lang or None) for name in names] == expected
    language = find_language(lang)
    by_language = get_normalizer("by_language")(text, lang or None)
    if language is None or language.code != "en":
        assert by_language == expected[2]
    elif "’" not in text:
        assert by_language == expected[4]


def test_table_has_thirty_hard_strings_in_twelve_scripts():
    scripts = {script for script in SCRIPTS if any(regex.search(rf"\p{{Script={script}}}", row[1]) for row in ROWS)}
    assert len(ROWS) >= 30
    assert scripts == set(SCRIPTS)


def test_table_of_units_holds():
    for ref, hyp, units, wer, cer, unit in _table("reference"):
        assert word_units(ref, hyp)[0] == [part.strip("` ") for part in units.split(",")]
        assert word_edits(ref, hyp).rate == pytest.approx(Fraction(wer))
        assert char_edits(ref, hyp).rate == pytest.approx(Fraction(cer))
        assert wer_unit([(ref, hyp)]) == unit


@given(st.text(max_size=12))
def test_own_normalizers_are_idempotent(text):
    for name in ("none", "lower", "basic"):
        once = get_normalizer(name)(text, None)
        assert get_normalizer(name)(once, None) == once
        assert once == " ".join(once.split())


@pytest.mark.parametrize("character", "\u00ad\u200b\u2060\ufeff\u200e\u202a\u2066\ufe0f\u034f\u061c\U000e0101")
@pytest.mark.parametrize("name", NORMALIZERS)
def test_invisible_characters_do_not_split_words(name, character):
    assert get_normalizer(name)(f"bar{character}rel", None) == get_normalizer(name)("barrel", None)


@pytest.mark.parametrize("apostrophe", "'’‘ʼʻʹ＇`´′ꞌ׳")
def test_apostrophes_of_every_shape_stay_inside_words(apostrophe):
    text = f"{apostrophe}tis O{apostrophe}Neil{apostrophe}s rock {apostrophe}n{apostrophe} roll dogs{apostrophe}"
    assert get_normalizer("basic")(text, None) == "tis o'neil's rock n roll dogs"
    assert get_normalizer("by_language")(f"it{apostrophe}s", "en") == "it is"


@pytest.mark.parametrize("name", ["whisper_basic", "whisper_english"])
def test_normalizers_of_openai_are_unchanged_on_ordinary_text(name):
    reference = _basic_normalizer() if name == "whisper_basic" else _english_normalizer()
    for _, text, *_ in ROWS:
        if all(unicodedata.category(character) not in ("Cf", "Cc") and character != "\ufe0f" for character in text):
            assert get_normalizer(name)(text, None) == " ".join(unicodedata.normalize("NFC", reference(text)).split())


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("text", ["", "  ", "Hello, wörld! It's 5 o'clock.", "ÇA VA? naïve", "ที่นี่", "..."])
def test_normalizers_are_idempotent_and_give_single_spaces(name, text):
    normalize = get_normalizer(name)
    once = normalize(text, "en")
    assert once == " ".join(once.split())
    if not name.startswith(("whisper", "by_")):
        assert normalize(once, "en") == once


def test_basic_keeps_letters_and_combining_marks():
    text = "हिन्दी ไทย العربية ελληνικά русский"
    assert get_normalizer("basic")(text, None) == text


def test_whisper_english_equals_transformers():
    from importlib import resources

    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    table = json.loads(resources.files("whisper_normalizer").joinpath("normalizers/english.json").read_text())
    reference = EnglishTextNormalizer(table)
    for text in ("I'd've gone, Dr. O'Neil!", "two hundred and five dollars", "the colour [laughs] (coughs) grey"):
        assert get_normalizer("whisper_english")(text, None) == " ".join(reference(text).split())


def test_unknown_normalizer_error_lists_known_names():
    with pytest.raises(ConfigError, match="normalizers: no normalizer 'fancy'.*whisper_english"):
        get_normalizer("fancy", key="normalizers")
