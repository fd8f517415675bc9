"""The one notion of a language: codes and names of any common form, and what follows from them.

Takes ISO 639-1 (``de``), ISO 639-3 (``deu``), BCP 47 (``de-DE``), FLEURS (``cmn_hans_cn``), Common Voice (``zh-CN``)
and English names (``German``). All forms of a language give equal answers.
"""

from dataclasses import dataclass
from functools import lru_cache

# Scripts that are written without spaces between words.
_UNSPACED_SCRIPTS = frozenset({"Hans", "Hant", "Hani", "Jpan", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr"})
# Languages whose Latin script has a dotted and a dotless i.
_DOTTED_I = frozenset({"tr", "az", "crh", "gag"})


@dataclass(frozen=True, slots=True)
class Language:
    """A language and how it is written.

    Attributes:
        code: Shortest standard code, without region and script: ``de``, ``zh`` (also for ``cmn``), ``yue``.
        script: ISO 15924 code, such as ``Latn``.
        spaced: Whether spaces separate words. If not, scores and word times count characters.
        dotted_i: Whether the lower case of ``I`` is ``ı``, as in Turkish.
    """

    code: str
    script: str
    spaced: bool
    dotted_i: bool


@lru_cache(maxsize=1024)
def find_language(text: str | None) -> Language | None:
    """The language that a code or an English name stands for, or None if there is no such language.

    Example:
        >>> find_language("cmn_hans_cn").code, find_language("German").code, find_language("tr-TR").dotted_i
        ('zh', 'de', True)
    """
    import langcodes
    from langcodes.tag_parser import LanguageTagError

    if not text:
        return None
    try:
        tag = langcodes.get(text.strip().replace("_", "-"))
    except LanguageTagError:
        tag = None
    if tag is None or not tag.is_valid():
        try:
            tag = langcodes.find(text)
        except LookupError:
            return None
    script = tag.maximize().script or "Latn"
    code = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True)).language or ""
    return Language(code, script, script not in _UNSPACED_SCRIPTS, code in _DOTTED_I and script == "Latn")


def is_spaced(text: str | None) -> bool:
    """Whether a language is written with spaces between words. True if the language is unknown."""
    language = find_language(text)
    return language is None or language.spaced
