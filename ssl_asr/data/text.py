"""Named text normalizers. References and hypotheses go through the same normalizer.

==================  ==========================================================================================
``none``            Unicode NFC, and single spaces between words
``lower``           ``none`` plus lower case, by the rules of the language (dotless i in Turkish and Azeri)
``basic``           ``lower`` without punctuation and symbols. Apostrophes inside words, letters and their
                    combining marks are kept, so that no script loses its vowels
``whisper_basic``   OpenAI's BasicTextNormalizer (removes combining marks: not for Indic scripts or Thai)
``whisper_english`` OpenAI's EnglishTextNormalizer: numbers, contractions, British spellings
``by_language``     ``whisper_english`` for English, ``basic`` for all other languages. In scripts written
                    without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Cantonese), each character
                    is a word
==================  ==========================================================================================
"""

import json
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import resources

from ssl_asr.errors import ConfigError
from ssl_asr.types import Normalizer

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
            # Categories P (punctuation), S (symbol) and C (control).
            kept.append(" " if unicodedata.category(character)[0] in "PSC" else character)
    return _none("".join(kept))


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
