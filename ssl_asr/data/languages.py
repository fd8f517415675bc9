"""The one notion of a language: codes and names of any common form, and what follows from them.

Takes ISO 639-1 (``de``), ISO 639-3 (``deu``), BCP 47 (``de-DE``), FLEURS (``cmn_hans_cn``), Common Voice (``zh-CN``),
MMS (``azj-script_latin``), POSIX (``de_DE.UTF-8``), Whisper (``<|de|>``) and English names (``German``). All forms of a
language give equal answers.

==================  ==================================================================================================
no language         null, an empty string, ``auto``, ``und``, ``mul``, ``mis``, ``zxx``, ``unknown``, ``multilingual``
members             a member of a macrolanguage without an ISO 639-1 code of its own is the macrolanguage: ``arz`` is
                    ``ar``, ``pes`` is ``fa``, ``nb`` is ``no``. Only Mandarin (``cmn``) is ``zh``: Cantonese (``yue``)
                    and other Chinese languages are languages of their own
old codes           ``iw`` is ``he``, ``in`` is ``id``, ``jw`` is ``jv``, ``mo`` is ``ro``, ``tl`` is ``fil``, ``sh`` is
                    ``sr`` in Latin script
unknown codes       where a language is required, an error with a suggestion. Elsewhere, no language, with one warning
==================  ==================================================================================================
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ssl_asr.scripts import UNSPACED_SCRIPTS
from ssl_asr.textfiles import is_unicode

if TYPE_CHECKING:
    from langcodes import Language as Tag

# ISO 15924 codes of combined scripts: simplified and traditional Chinese characters, and Japanese.
_COMBINED_SCRIPTS = frozenset({"Hans", "Hant", "Hanb", "Jpan", "Hrkt"})
# Languages whose Latin script has a dotted and a dotless i. Their members, such as azj, are included.
_DOTTED_I = frozenset({"tr", "az", "crh", "gag", "kk", "tly", "tt", "zza"})
# Most frequent scripts where those of the CLDR data differ.
_SCRIPTS = {"crh": "Latn", "azb": "Arab"}
_NO_LANGUAGE = frozenset({"auto", "und", "mul", "mis", "zxx", "undetermined", "unknown", "multilingual", "multiple"})
# MMS: azj-script_latin, quc-dialect_central.
_MMS_NAME = re.compile(r"([a-z]{3})-(script|dialect)_(\w+)", flags=re.IGNORECASE)
# POSIX: zh_CN.UTF-8, de_DE@euro, sr@latin.
_POSIX_NAME = re.compile(r"([a-z]{2,3}(?:_[a-z]{2}(?:\.[\w-]+)?)?)@(\w+)|([a-z]{2,3}_[a-z]{2})\.[\w-]+", re.I | re.A)
_WHISPER_TOKEN = re.compile(r"<\|(\w+)\|>", re.A)
_WINDOWS_NAMES = {"zh-chs": "zh-Hans", "zh-cht": "zh-Hant"}
_MOST_LISTED = 120


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


@lru_cache(maxsize=4096)
def find_language(text: str | None) -> Language | None:
    """The language that a code or an English name stands for, or None if there is no such language.

    Example:
        >>> find_language("cmn_hans_cn").code, find_language("German").code, find_language("tr-TR").dotted_i
        ('zh', 'de', True)
    """
    tag = _parse(text)
    if tag is None:
        return None
    code, script = _code(tag), _script(tag)
    spaced = script not in UNSPACED_SCRIPTS and script not in _COMBINED_SCRIPTS
    return Language(code, script, spaced, code in _DOTTED_I and script == "Latn")


def is_spaced(text: str | None) -> bool:
    """Whether a language is written with spaces between words. True if the language is unknown."""
    language = language_of(text)
    return language is None or language.spaced


def given_language(text: str | None) -> str | None:
    """The text of a language option or key, or None if it names no language: empty, ``auto``, ``und``, ``mul``."""
    text = (text or "").strip()
    return None if not text or text.lower() in _NO_LANGUAGE else text


def language_of(text: str | None, where: str = "lang") -> Language | None:
    """Same as `find_language`, with a warning for the first use of each unknown code.

    Args:
        text: Code or name.
        where: ``file:line`` or key, for the warning.
    """
    language = find_language(text)
    if language is None and given_language(text) is not None:
        _warn_once(str(text), where)
    return language


_warned: set[str] = set()


def _warn_once(text: str, where: str) -> None:
    if text not in _warned:
        _warned.add(text)
        near = _language_of_country(text)
        remedy = f"Did you mean '{near}'?" if near else "Use a code such as 'de', 'deu' or 'de-DE'."
        message = f"{where}: '{text}' is not a known language, so its texts have no language. {remedy}"
        warnings.warn(message, stacklevel=4)


def same_language(wanted: str, text: str) -> bool:
    """Whether a text names the wanted language, in the wanted region and script if there are any.

    A text without a region or script has the most frequent one.

    Example:
        >>> [same_language("pt", "pt_br"), same_language("pt-BR", "pt-PT"), same_language("zh", "cmn_hans_cn")]
        [True, False, True]
    """
    one, other = _parse(wanted), _parse(text)
    if one is None or other is None:
        return wanted == text
    regions = one.territory in (None, other.territory or other.maximize().territory)
    scripts = one.script in (None, _script(other))
    return _code(one) == _code(other) and regions and scripts


def language_code(text: str) -> str:
    """Shortest standard code of a language, or the text itself if it names no language.

    Example:
        >>> language_code("zh_cn"), language_code("German"), language_code("mul")
        ('zh', 'de', 'mul')
    """
    language = language_of(text)
    return text if language is None else language.code


def language_tag(text: str) -> str:
    """Shortest standard tag: `language_code`, and the region or script if it is not the most frequent one.

    Example:
        >>> language_tag("zh_cn"), language_tag("zh_tw"), language_tag("eng"), language_tag("en-GB")
        ('zh', 'zh-TW', 'en', 'en-GB')
    """
    tag = _parse(text)
    if tag is None:
        return text
    usual, code = type(tag).make(tag.language).maximize(), _code(tag)
    region = tag.territory if tag.territory not in (None, usual.territory) else None
    likely = type(tag).make(tag.language, territory=region).maximize().script
    script = tag.script if tag.script not in (None, likely) else None
    return "-".join(part for part in (code, script, region) if part)


def match_language(text: str, names: Iterable[str]) -> str | None:
    """The name in another list, such as the languages of a checkpoint, that stands for a language.

    A name that is equal to the text comes first. Other names of the language are ranked by member of the macrolanguage,
    then by script, then by whether the member is the usual one. None if there is no name, or only dialects.

    Example:
        >>> match_language("az", ["deu", "azj-script_cyrillic", "azj-script_latin"])
        'azj-script_latin'
    """
    names = list(names)
    exact = [name for name in names if name == text] or [name for name in names if name.lower() == text.lower()]
    tag = _parse(text)
    if exact or tag is None:
        return exact[0] if exact else None
    found = [
        ((other.language != tag.language, _script(other) != _script(tag), not _is_usual(other)), name)
        for name in names
        if (other := _parse(name)) is not None and _code(other) == _code(tag) and "-dialect_" not in name
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def nearest_language(text: str, names: Collection[str]) -> str:
    """Remedy for a language that is not in a list of names: the nearest name, or the names.

    Example:
        >>> nearest_language("yue", ["en", "zh"]), nearest_language("jp", ["en", "ja"])
        ("did you mean 'zh'?", "did you mean 'ja'?")
    """
    tags = {name: tag for name in names if (tag := _parse(name)) is not None}
    wanted = _parse(text)
    own = [name for name, tag in tags.items() if wanted is not None and _code(tag) == _code(wanted)]
    if own:
        return f"use one of {', '.join(own)}"
    near = None if wanted is None else _closest(wanted, tags)
    country = _language_of_country(text)
    # The country of a code that is a language too says little if its language is English.
    if near is None and country is not None and (wanted is None or country != "en"):
        near = match_language(country, names)
    if near is None:
        spelled = {tag.display_name().lower(): name for name, tag in tags.items()} if wanted is None else {}
        typed = difflib.get_close_matches(text.lower(), [*spelled, *names], n=1, cutoff=0.66)
        near = spelled.get(typed[0], typed[0]) if typed else None
    if near is not None:
        return f"did you mean '{near}'?"
    return (
        f"use one of {' '.join(names)}" if len(names) <= _MOST_LISTED else "use the ISO 639-3 code of another language"
    )


def _closest(wanted: Tag, tags: Mapping[str, Tag]) -> str | None:
    """The name of the language that speakers of the wanted language understand best, by the distances of the CLDR."""
    from langcodes import closest_match

    codes = {_code(tag): name for name, tag in reversed(list(tags.items()))}
    macro = _macro_of(wanted)
    code, _ = closest_match(macro if macro in codes else wanted, list(codes), max_distance=25)
    return codes.get(code)


@lru_cache(maxsize=4096)
def _parse(text: str | None) -> Tag | None:
    """The standard tag of a code or name. None if it names no language."""
    import langcodes
    from langcodes.tag_parser import LanguageTagError

    text = given_language(text)
    # langcodes fails on text that is not Unicode, and on NUL.
    if text is None or "\0" in text or not is_unicode(text):
        return None
    if (mms := _MMS_NAME.fullmatch(text)) is not None:
        return _in_script(_parse(mms[1]), mms[3]) if mms[2].lower() == "script" else _parse(mms[1])
    if (posix := _POSIX_NAME.fullmatch(text)) is not None:
        locale = _parse(posix[1] or posix[3])
        # Other modifiers, such as @euro, are about currencies and sorting.
        return _in_script(locale, posix[2] or "") or locale
    if (token := _WHISPER_TOKEN.fullmatch(text)) is not None:
        return _parse(token[1])
    try:
        dashed = text.replace("_", "-")
        tag = _member(langcodes.get(_WINDOWS_NAMES.get(dashed.lower(), dashed)))
    except LanguageTagError:
        tag = None
    if tag is None:
        # Two letters that are no language are those of a country. langcodes knows them as names of rare languages.
        if re.fullmatch(r"[A-Za-z]{2}", text):
            return None
        try:
            tag = langcodes.get(langcodes.find(text.replace("_", " ")).to_tag())
        except LookupError:
            return None
    # Private languages have no properties.
    private = tag.language is None or not re.fullmatch(r"(?!q[a-t])[a-z]{2,3}", tag.language)
    return None if private or tag.language in _NO_LANGUAGE else tag


def _in_script(tag: Tag | None, script: str) -> Tag | None:
    """A language in the script of an English name. None if there is no such script, or no language."""
    if tag is None:
        return None
    try:
        return type(tag).make(tag.language, script=type(tag).find_name("script", script, "en").script)
    except LookupError:
        return None


def _member(tag: Tag) -> Tag | None:
    """The language of a tag that names a member: ``zh-nan`` is ``nan``. None if it is no member, as in ``eng-fra``."""
    from langcodes.data_dicts import MACROLANGUAGES

    if not tag.extlangs:
        return tag if tag.is_valid() else None
    member = tag.extlangs[0]
    if tag.language not in (MACROLANGUAGES.get(member), "sgn"):
        return None
    return type(tag).make(member, script=tag.script, territory=tag.territory)


def _code(tag: Tag) -> str:
    """Code without region and script. See the table of the module."""
    if tag.language == "nb":
        return "no"
    macro = _macro_of(tag)
    own = str(tag.language)
    if own == "cmn":
        return "zh"
    return macro if macro is not None and len(own) == 3 and macro != "zh" else own


def _macro_of(tag: Tag) -> str | None:
    """The macrolanguage of a language, or None."""
    from langcodes.data_dicts import MACROLANGUAGES, NORMALIZED_MACROLANGUAGES

    own = str(tag.language)
    macro: str | None = NORMALIZED_MACROLANGUAGES.get(own) or MACROLANGUAGES.get(own)
    return macro


def _script(tag: Tag) -> str:
    """The script of a tag, or the most frequent script of its language."""
    return tag.script or _SCRIPTS.get(str(tag.language)) or tag.maximize().script or "Latn"


def _is_usual(tag: Tag) -> bool:
    """Whether a tag is a macrolanguage, or the member that the code of a macrolanguage usually stands for."""
    from langcodes.data_dicts import NORMALIZED_MACROLANGUAGES

    return _code(tag) in (tag.language, NORMALIZED_MACROLANGUAGES.get(str(tag.language)))


def _language_of_country(text: str) -> str | None:
    """The language of a country whose code was given in place of a language's: ``ja`` for ``jp``. None otherwise."""
    import langcodes

    # Codes that start with x and q are private.
    if re.fullmatch(r"[A-Za-z]{2}", text.strip()) is None or text.strip()[0] in "xXqQ":
        return None
    tag = langcodes.Language.make(territory=text.strip().upper())
    found = tag.maximize().language if tag.is_valid() else None
    return None if found in (None, "und") else found
