"""Types of options that name files, which are checked before a run starts, and the lines of lexicons and phrases."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from annotated_types import Predicate

from ssl_asr.errors import LanguageModelError
from ssl_asr.textfiles import is_file_name, is_hub_name, read_lines
from ssl_asr.types import Expected, IsPath

_GAP = re.compile(r"[ \t]+")


# Ends of the names of files of phrases. Another name that is no file is a phrase.
_PHRASE_FILES = (".txt", ".txt.gz")


def _is_file(name: str) -> bool:
    return is_file_name(name) and Path(name).is_file()


def _is_language_model(name: str) -> bool:
    return is_file_name(name) and (Path(name).exists() or is_hub_name(name))


TextFile = Annotated[str, IsPath("input"), Predicate(_is_file), Expected("the path of a text file that exists")]
LanguageModelName = Annotated[
    str,
    IsPath("input"),
    Predicate(_is_language_model),
    Expected("a file that exists (ssl-asr lm makes one), or the folder or Hub name of a causal language model"),
]


def read_entries(path: Path, *, remedy: str) -> Iterator[tuple[int, list[str]]]:
    """The entries of a lexicon: for each line that is not blank, its number and its fields.

    Spaces and tabs separate fields. Every other character is part of a field.

    Args:
        path: Path of the lexicon. It may be gzipped.
        remedy: What to do, for the error message.

    Raises:
        LanguageModelError: There is no such file, or a line is not text.
    """
    if not path.is_file():
        raise LanguageModelError(str(path), "no such lexicon", remedy)
    for number, line in read_lines(path, error=LanguageModelError, remedy=remedy):
        fields = _GAP.split(line.strip(" \t\ufeff"))
        if not line.isprintable():
            control = next((field for field in fields if any(unicodedata.category(c) == "Cc" for c in field)), None)
            if control is not None:
                raise LanguageModelError(f"{path}:{number}", f"{control!r} has a control character", "remove it")
        if fields != [""]:
            yield number, fields


def read_phrases(hotwords: Iterable[str]) -> list[str]:
    """The given phrases, with the lines of each text file in place of its name. Blank lines are left out.

    Args:
        hotwords: Phrases and names of text files, which may be gzipped.

    Raises:
        LanguageModelError: A name ends in .txt or .txt.gz and there is no such file, a line of a file is not text, or a
            file has no phrase.
    """
    phrases: list[str] = []
    for given in hotwords:
        if not _is_file(given):
            if given.lower().endswith(_PHRASE_FILES):
                raise LanguageModelError(given, "no such file of hotwords", "check the path")
            phrases.append(given)
            continue
        lines = read_lines(Path(given), error=LanguageModelError, remedy="write one phrase per line")
        found = [phrase for _, line in lines if (phrase := " ".join(line.split()))]
        if not found:
            raise LanguageModelError(given, "has no phrase", "write one phrase per line")
        phrases += found
    return phrases
