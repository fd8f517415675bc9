"""The character tokenizer for CTC, and the two options that build it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID, NormalizerName, Utterance

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary


class CharTokenizer:
    """One id per character, for CTC.

    Id 0 is the blank. Id 1 is the unknown character, which stands for every character outside the alphabet.
    Padding has no id, because targets are stored with their lengths.

    Args:
        characters: The alphabet. The first character gets id 2.
        normalizer: Name of the text normalizer that is applied before encoding.

    Raises:
        ConfigError: The alphabet is empty or repeats a character, or the normalizer does not exist.

    Example:
        >>> tokenizer = CharTokenizer(characters=" abc", normalizer="lower")
        >>> tokenizer.decode([4, 2, 3])
        'b a'
    """

    unit: ClassVar[str] = "characters"

    def __init__(self, *, characters: str | Sequence[str], normalizer: str = "none") -> None:
        characters = list(characters)
        repeated = [character for character, count in Counter(characters).items() if count > 1]
        if repeated or not characters:
            what = f"repeats {repeated}" if repeated else "is empty"
            raise ConfigError("tokenizer.characters", what, "list each character once")
        self.characters = characters
        self.normalizer = normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        self._ids = {character: i for i, character in enumerate(characters, start=FIRST_LABEL_ID)}

    @classmethod
    def from_texts(cls, utterances: Iterable[Utterance], *, normalizer: str) -> "CharTokenizer":
        """Tokenizer with all characters of the normalized texts as its alphabet, sorted by code point.

        Raises:
            ManifestError: The texts are empty.
        """
        normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        seen: set[str] = set()
        for utterance in utterances:
            seen.update(normalize(utterance.text, utterance.lang))
        if not seen:
            raise ManifestError("train manifest", "has no text", "CTC needs characters to learn")
        return cls(characters=sorted(seen), normalizer=normalizer)

    @property
    def vocab_size(self) -> int:
        """Size of the alphabet plus 2, for the blank and the unknown character."""
        return len(self.characters) + FIRST_LABEL_ID

    def _text(self, utterance: Utterance) -> str:
        return self._normalize(utterance.text, utterance.lang)

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the characters of the normalized text."""
        return [self._ids.get(character, UNKNOWN_ID) for character in self._text(utterance)]

    def unseen(self, utterance: Utterance) -> list[str]:
        """Characters of the normalized text that are not in the alphabet, repeats included."""
        return [character for character in self._text(utterance) if character not in self._ids]

    def decode(self, ids: list[int]) -> str:
        """Text of ids from which repeats are already removed. Blanks are skipped; the unknown id gives ``⁇``."""
        pieces = ["⁇" if i == UNKNOWN_ID else self.characters[i - FIRST_LABEL_ID] for i in ids if i != BLANK_ID]
        return " ".join("".join(pieces).split())

    def labels(self) -> list[str | None]:
        """Spelling of each id. None for the blank and the unknown character."""
        return [None] * FIRST_LABEL_ID + self.characters

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {"kind": "char", "characters": list(self.characters), "normalizer": self.normalizer}


@dataclass(frozen=True, kw_only=True)
class Characters:
    """The ``char`` option: characters as CTC labels.

    Attributes:
        characters: Alphabet. None takes all characters of the train split.
        normalizer: Name of the text normalizer that is applied before encoding.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    characters: str | None
    normalizer: NormalizerName

    def build(self, *, train: Iterable[Utterance], checkpoint: "PretrainedVocabulary") -> CharTokenizer:
        """Tokenizer with the given alphabet, or with the alphabet of ``train`` if none is given."""
        if self.characters is None:
            return CharTokenizer.from_texts(train, normalizer=self.normalizer)
        return CharTokenizer(characters=self.characters, normalizer=self.normalizer)


@dataclass(frozen=True, kw_only=True)
class PretrainedCharacters:
    """The ``pretrained`` option: the alphabet of a checkpoint that is already fine-tuned with CTC.

    Attributes:
        normalizer: Name of the text normalizer that is applied before encoding.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    normalizer: NormalizerName

    def build(self, *, train: Iterable[Utterance], checkpoint: "PretrainedVocabulary") -> CharTokenizer:
        """Tokenizer with the alphabet of ``checkpoint``.

        Raises:
            CheckpointError: The checkpoint has no CTC head, or its tokens are not characters.
        """
        return CharTokenizer(characters=checkpoint.characters(), normalizer=self.normalizer)
