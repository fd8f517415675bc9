"""Types of options that name files, which are checked before a run starts."""

from pathlib import Path
from typing import Annotated

from annotated_types import Predicate

from ssl_asr.textfiles import is_hub_name
from ssl_asr.types import Expected, IsPath


def _is_file(name: str) -> bool:
    return Path(name).is_file()


def _is_language_model(name: str) -> bool:
    return Path(name).exists() or is_hub_name(name)


TextFile = Annotated[str, IsPath("input"), Predicate(_is_file), Expected("the path of a text file that exists")]
LanguageModelName = Annotated[
    str,
    IsPath("input"),
    Predicate(_is_language_model),
    Expected("a file that exists (ssl-asr lm makes one), or the folder or Hub name of a causal language model"),
]
