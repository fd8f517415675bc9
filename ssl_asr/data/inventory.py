"""What the tokenizers have in common that take their labels from a list: characters and symbols."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

from ssl_asr.data.parallel import map_ranges, ranges_of
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID, Utterance

_UNKNOWN_TEXT = "⁇"


class InventoryTokenizer(ABC):
    """One CTC label for each entry of an inventory.

    Id 0 is the blank. Id 1 is the unknown label, which stands for everything outside the inventory. Padding has no id,
    because targets are stored with their lengths.

    Args:
        inventory: The labels. The first one gets id 2.
        normalizer: Name of the text normalizer that is applied before the text is split into labels.

    Raises:
        ConfigError: The normalizer does not exist.
    """

    unit: ClassVar[str]

    def __init__(self, inventory: Sequence[str], *, normalizer: str) -> None:
        self._inventory = list(inventory)
        self.normalizer = normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        self._ids = {label: i for i, label in enumerate(self._inventory, start=FIRST_LABEL_ID)}

    @staticmethod
    @abstractmethod
    def split(text: str) -> Sequence[str]:
        """Labels of a normalized text, in order."""

    @classmethod
    @abstractmethod
    def of(cls, inventory: Sequence[str], *, normalizer: str) -> Self:
        """Tokenizer with the given inventory."""

    @classmethod
    def from_texts(cls, utterances: Iterable[Utterance], *, normalizer: str) -> Self:
        """Tokenizer with all labels of the normalized texts as its inventory, sorted by code point.

        Raises:
            ManifestError: The texts are empty.
        """
        normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        rows: Sequence[Utterance] = utterances if isinstance(utterances, Sequence) else list(utterances)

        def labels(start: int, end: int) -> set[str]:
            given = ((text, row.lang) for row in rows[start:end] for text in row.texts)
            return {one for text, lang in given for one in set(cls.split(normalize(text, lang)))}

        seen = set[str]().union(*map_ranges(labels, ranges_of(len(rows))))
        if not seen:
            raise ManifestError("train manifest", "has no text", f"CTC needs {cls.unit} to learn")
        return cls.of(sorted(seen), normalizer=normalizer)

    @classmethod
    def build(cls, inventory: Sequence[str] | None, *, train: Iterable[Utterance], normalizer: str) -> Self:
        """Tokenizer with the given inventory, or with the labels of ``train`` if none is given."""
        if inventory is None:
            return cls.from_texts(train, normalizer=normalizer)
        return cls.of(inventory, normalizer=normalizer)

    @property
    def vocab_size(self) -> int:
        """Size of the inventory plus 2, for the blank and the unknown label."""
        return len(self._inventory) + FIRST_LABEL_ID

    def _labels_of(self, utterance: Utterance) -> Sequence[str]:
        return self.split(self._normalize(utterance.text, utterance.lang))

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the labels of the normalized text."""
        return [self._ids.get(label, UNKNOWN_ID) for label in self._labels_of(utterance)]

    def unseen(self, utterance: Utterance) -> list[str]:
        """Labels of the normalized text that are not in the inventory, repeats included."""
        labels = self._labels_of(utterance)
        # Nearly all texts have none, and a set is compared several times faster than a list is searched.
        return [] if self._ids.keys() >= set(labels) else [label for label in labels if label not in self._ids]

    def spellings(self, ids: list[int]) -> list[str]:
        """The label of each id, without blanks. The unknown id gives ``⁇``."""
        return [_UNKNOWN_TEXT if i == UNKNOWN_ID else self._inventory[i - FIRST_LABEL_ID] for i in ids if i != BLANK_ID]
