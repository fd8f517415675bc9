"""Text normalizers."""

import json
import unicodedata

import pytest

from ssl_asr.data.text import NORMALIZERS, get_normalizer
from ssl_asr.errors import ConfigError


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
        ("by_language", "zh-CN", "你好，世界", "你 好 世 界"),
        ("by_language", None, "Hello!", "hello"),
    ],
)
def test_examples_of_each_normalizer(name, lang, text, expected):
    assert get_normalizer(name)(text, lang) == expected


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
