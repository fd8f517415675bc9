"""Named text normalisers, the same for references and hypotheses.

==================  ==========================================================================================
``none``            only Unicode NFC and white space made single
``lower``           the same, lower-cased by the language's own rules (Turkish and Azeri dotless i)
``basic``           lower-cased, punctuation and symbols gone, apostrophes inside words, letters and their
                    marks kept, so that no script loses its vowels
``whisper_basic``   OpenAI's BasicTextNormalizer (removes combining marks: not for Indic scripts or Thai)
``whisper_english`` OpenAI's EnglishTextNormalizer: numbers, contractions, British spellings
``by_language``     ``whisper_english`` for English, ``basic`` for the rest, and for scripts written without
                    spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Cantonese) one character a word
==================  ==========================================================================================
"""

import json
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

from ssl_asr.errors import ConfigError

Normalizer = Callable[[str, str | None], str]
"""``normalize(text, lang)``; ``lang`` is the utterance's language code, or None."""

UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue"})
_DOTTED_I_LANGUAGES = frozenset({"tr", "az"})
_APOSTROPHES = "'’ʼ"


def _none(text: str, lang: str | None = None) -> str:  # noqa: ARG001
    return " ".join(unicodedata.normalize("NFC", text).split())


def _lower(text: str, lang: str | None = None) -> str:
    if lang in _DOTTED_I_LANGUAGES:
        text = text.replace("I", "ı").replace("İ", "i")
    return _none(text.lower())


def _basic(text: str, lang: str | None = None) -> str:
    text = _lower(unicodedata.normalize("NFKC", text), lang)
    kept = []
    for position, character in enumerate(text):
        if character in _APOSTROPHES:
            inside = 0 < position < len(text) - 1 and text[position - 1].isalnum()
            kept.append("'" if inside and text[position + 1].isalnum() else " ")
        else:
            kept.append(" " if unicodedata.category(character)[0] in "PSC" else character)
    return _none("".join(kept))


@lru_cache(maxsize=1)
def _english_normalizer() -> Any:
    """Transformers' port of OpenAI's; the table of British spellings it needs is in whisper_normalizer's data.

    whisper_normalizer's own code has departed from OpenAI's (numbers), and gives other error rates.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    table = resources.files("whisper_normalizer").joinpath("normalizers/english.json")
    return EnglishTextNormalizer(json.loads(table.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def _basic_normalizer() -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


def _whisper_english(text: str, lang: str | None = None) -> str:  # noqa: ARG001
    return _none(_english_normalizer()(text))


def _whisper_basic(text: str, lang: str | None = None) -> str:  # noqa: ARG001
    return _none(_basic_normalizer()(text))


def _by_language(text: str, lang: str | None = None) -> str:
    code = (lang or "").split("-")[0].lower()
    if code == "en":
        return _whisper_english(text)
    text = _basic(text, code)
    return " ".join(text.replace(" ", "")) if code in UNSPACED_LANGUAGES else text


NORMALIZERS: dict[str, Normalizer] = {
    "none": _none,
    "lower": _lower,
    "basic": _basic,
    "whisper_basic": _whisper_basic,
    "whisper_english": _whisper_english,
    "by_language": _by_language,
}


def get_normalizer(name: str, *, key: str = "normalizer") -> Normalizer:
    """The normaliser of that name.

    Args:
        name: one of `NORMALIZERS`.
        key: the config key to name in the error.

    Raises:
        ConfigError: there is no such normaliser.

    Example:
        >>> get_normalizer("basic")("Straße, l'été!", "fr")
        "straße l'été"
    """
    if name not in NORMALIZERS:
        raise ConfigError(key, f"no normaliser '{name}'", f"one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]
