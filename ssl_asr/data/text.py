"""Named text normalizers. References and hypotheses go through the same normalizer.

==================  ==========================================================================================
``none``            Unicode NFC, single spaces between words, no invisible characters. In the scripts that spell
                    with them (Arabic, Persian, Indic), zero-width joiners stay after a letter, and zero-width
                    non-joiners between two letters
``lower``           ``none`` in lower case, by the rules of the language (dotless i in Turkish, Azeri and others)
``basic``           ``lower`` of the compatibility form (NFKC), without punctuation and symbols, with digits 0-9.
                    Apostrophes inside words, letters and their combining marks are kept, so that no script loses
                    its vowels. Optional vowel signs of Arabic and Hebrew, tatweel and all joiners are removed
``whisper_basic``   OpenAI's BasicTextNormalizer (removes combining marks: not for Indic scripts or Thai), without
                    invisible characters
``whisper_english`` OpenAI's EnglishTextNormalizer: numbers, contractions, British spellings. Without invisible
                    characters
``by_language``     ``whisper_english`` for English, with apostrophes of every shape; ``basic`` otherwise
==================  ==========================================================================================

Rules of ``basic``, with a visible separator for each space that replaces a character:

==========================  ========================================================================================
invisible characters        removed: soft hyphen, zero-width space, joiners, word joiner, byte order mark, marks of
                            direction, variation selectors, control characters. Tabs and line ends are spaces
apostrophes                 every shape (``' ’ ‘ ʼ ʻ ʹ ＇ ` ´ ′ ꞌ ׳``) between two letters or digits becomes ``'``.
                            At the start or end of a word it is removed: ``'tis`` is ``tis``, ``dogs'`` is ``dogs``
punctuation, symbols        one space: hyphens and dashes (``rock-n-roll``), decimal points and thousands separators
                            (``3.14`` is ``3 14``, ``1,000`` is ``1 000``), ``%``, currency, emojis, dandas, URLs
Hebrew gershayim            removed between two Hebrew letters, also as ``"``
compatibility characters    full-width forms, ligatures, presentation forms and fractions by NFKC
digits                      decimal digits of all scripts become 0-9
Arabic                      tatweel, harakat and Quranic signs removed. Hamza and madda stay
Hebrew                      points and cantillation signs removed
case                        ``ß`` stays; a capital sigma becomes ``ς`` at the end of a word, otherwise ``σ``
==========================  ========================================================================================
"""

import json
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import resources

import regex

from ssl_asr.data.languages import language_of
from ssl_asr.errors import ConfigError
from ssl_asr.types import Normalizer

_JOINERS = r"[\u200C\u200D]"
# Characters without a shape of their own (Unicode Default_Ignorable_Code_Point), controls and interlinear annotations.
_INVISIBLE = regex.compile(rf"(?!{_JOINERS})[\p{{Default_Ignorable_Code_Point}}\uFFF9-\uFFFB]|(?!\s)\p{{Cc}}")
# Scripts whose spelling uses the zero-width joiner and non-joiner inside words.
_JOINING = ["Arab", "Beng", "Deva", "Gujr", "Guru", "Knda", "Mlym", "Mong", "Orya", "Sinh", "Syrc", "Taml", "Telu"]
_JOINED = "[" + "".join(rf"\p{{Script={script}}}" for script in _JOINING) + r"\p{Mn}\p{Mc}]"
_STRAY_JOINER = regex.compile(rf"(?<!{_JOINED}){_JOINERS}|\u200C(?!{_JOINED})")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʻʽʹ＇`´′ꞌՙ՚׳", "'"))
_WORD = r"[\p{L}\p{Mn}\p{Mc}\p{N}]"
_OUTER_APOSTROPHE = regex.compile(rf"(?<!{_WORD})'|'(?!{_WORD})")
_GERSHAYIM = regex.compile(r"(?<=\p{Script=Hebrew})[\"״“”](?=\p{Script=Hebrew})")
# Tatweel, and marks that Arabic and Hebrew are usually written without. Not hamza and madda (U+0653 to U+0655).
_OPTIONAL_MARKS = regex.compile(
    r"[\u0640\u0610-\u061A\u064B-\u0652\u0656-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u08CA-\u08FF"
    r"\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7]"
)
_SEPARATOR = regex.compile(r"[^\p{L}\p{Mn}\p{Mc}\p{N}\s']")
_FINAL_SIGMA = regex.compile(r"(?<=\p{L}\p{M}*)[σς](?![\p{L}\p{M}'])")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _visible(text: str) -> str:
    """The text in NFC without invisible characters."""
    return _nfc(regex.sub(_JOINERS, "", _INVISIBLE.sub("", text)))


def _none(text: str, lang: str | None = None) -> str:  # noqa: ARG001
    if text.isascii() and text.isprintable():
        # Most texts. The only white space that they may have is the space.
        if "  " not in text and text == text.strip():
            return text
    else:
        text = _nfc(_STRAY_JOINER.sub("", _nfc(_INVISIBLE.sub("", text))))
    return " ".join(text.split())


def _lower(text: str, lang: str | None = None) -> str:
    text = _nfc(text)
    language = language_of(lang)
    if language is not None and language.dotted_i:
        text = text.replace("I", "ı").replace("İ", "i")
    return _none(text.lower())


def _basic(text: str, lang: str | None = None) -> str:
    # Before NFKC, which splits an acute accent into a space and a combining mark.
    text = _visible(text).translate(_APOSTROPHES)
    text = _lower(_visible(unicodedata.normalize("NFKC", text)), lang).translate(_APOSTROPHES)
    text = _GERSHAYIM.sub("", _OPTIONAL_MARKS.sub("", text))
    text = _OUTER_APOSTROPHE.sub(" ", _SEPARATOR.sub(" ", text))
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return _none(_FINAL_SIGMA.sub("ς", text.replace("ς", "σ")))


@lru_cache(maxsize=1)
def _english_normalizer() -> Callable[[str], str]:
    """OpenAI's English normalizer, as ported to transformers.

    The table of British spellings comes from the data of the package whisper_normalizer. The code of that package
    treats numbers differently from OpenAI's and gives other error rates, so it is not used.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    table = resources.files("whisper_normalizer").joinpath("normalizers/english.json")
    normalize: Callable[[str], str] = EnglishTextNormalizer(json.loads(table.read_text(encoding="utf-8")))
    return normalize


@lru_cache(maxsize=1)
def _basic_normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalize: Callable[[str], str] = BasicTextNormalizer()
    return normalize


def _whisper_english(text: str, lang: str | None = None) -> str:  # noqa: ARG001
    return _none(_english_normalizer()(_visible(text)))


def _whisper_basic(text: str, lang: str | None = None) -> str:  # noqa: ARG001
    return _none(_basic_normalizer()(_visible(text)))


def _by_language(text: str, lang: str | None = None) -> str:
    language = language_of(lang)
    if language is None or language.code != "en":
        return _basic(text, lang)
    return _whisper_english(text.translate(_APOSTROPHES))


NORMALIZERS: dict[str, Normalizer] = {
    "none": _none,
    "lower": _lower,
    "basic": _basic,
    "whisper_basic": _whisper_basic,
    "whisper_english": _whisper_english,
    "by_language": _by_language,
}


def get_normalizer(name: str, *, key: str = "normalizer") -> Normalizer:
    """The normalizer with a name.

    Args:
        name: One of `NORMALIZERS`.
        key: Config key for the error message.

    Raises:
        ConfigError: There is no normalizer with this name.

    Example:
        >>> get_normalizer("basic")("Straße, l'été!", "fr")
        "straße l'été"
    """
    if name not in NORMALIZERS:
        raise ConfigError(key, f"no normalizer '{name}'", f"use one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


def get_normalizers(names: Iterable[str], *, key: str = "normalizers") -> dict[str, Normalizer]:
    """Normalizers by name, in the order of ``names``.

    Raises:
        ConfigError: There is no normalizer with one of the names.
    """
    return {name: get_normalizer(name, key=key) for name in names}
