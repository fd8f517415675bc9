"""The character tokenizer for CTC, and the two options that build it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ssl_asr.data.inventory import InventoryTokenizer
from ssl_asr.data.targets import TargetArrays, count_characters
from ssl_asr.errors import ConfigError
from ssl_asr.types import FIRST_LABEL_ID, NormalizerName, Text, Utterance

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary


class CharTokenizer(InventoryTokenizer):
    """One id per character, for CTC. See `InventoryTokenizer`.

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
        repeated = [character for character, count in Counter(characters).items() if count > 1]
        if repeated or not characters:
            what = f"repeats {repeated}" if repeated else "is empty"
            raise ConfigError("tokenizer.characters", what, "list each character once")
        super().__init__(list(characters), normalizer=normalizer)

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """The characters of a text, spaces included."""
        return text

    @classmethod
    def of(cls, inventory: Sequence[str], *, normalizer: str) -> Self:
        """See `InventoryTokenizer`."""
        return cls(characters=inventory, normalizer=normalizer)

    @property
    def characters(self) -> list[str]:
        """The alphabet."""
        return self._inventory

    def count_targets(self, texts: Sequence[Text]) -> TargetArrays:
        """See `ssl_asr.data.targets.TargetCounter`."""
        return count_characters([self._normalize(text, lang) for text, lang in texts], self.characters)

    def decode(self, ids: list[int]) -> str:
        """Text of ids from which repeats are already removed. Blanks are skipped; the unknown id gives ``⁇``."""
        return " ".join("".join(self.spellings(ids)).split())

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
        return CharTokenizer.build(self.characters, train=train, normalizer=self.normalizer)


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
