"""The symbol tokenizer for CTC (phonemes, for example), and the option that builds it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ssl_asr.data.inventory import InventoryTokenizer
from ssl_asr.errors import ConfigError
from ssl_asr.types import FIRST_LABEL_ID, NormalizerName, Utterance

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary


class SymbolTokenizer(InventoryTokenizer):
    """One id per symbol, for CTC. Symbols are separated by spaces. See `InventoryTokenizer`.

    Reports count each symbol as a word, so the WER is the symbol error rate.

    Args:
        symbols: The inventory. The first symbol gets id 2.
        normalizer: Name of the text normalizer that is applied before the text is split.

    Raises:
        ConfigError: The inventory is empty, repeats a symbol or holds a symbol with a space, or the
            normalizer does not exist.

    Example:
        >>> tokenizer = SymbolTokenizer(symbols=["AA", "K", "T"], normalizer="none")
        >>> tokenizer.decode([3, 2, 4])
        'K AA T'
    """

    unit: ClassVar[str] = "symbols"

    def __init__(self, *, symbols: Sequence[str], normalizer: str) -> None:
        bad = [symbol for symbol in symbols if not symbol or symbol.split() != [symbol]]
        if bad or not symbols or len(set(symbols)) < len(symbols):
            what = f"holds {bad}" if bad else "is empty" if not symbols else "repeats a symbol"
            raise ConfigError("tokenizer.symbols", what, "list each symbol once, without spaces")
        super().__init__(symbols, normalizer=normalizer)

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """The symbols of a text."""
        return text.split()

    @classmethod
    def of(cls, inventory: Sequence[str], *, normalizer: str) -> Self:
        """See `InventoryTokenizer`."""
        return cls(symbols=inventory, normalizer=normalizer)

    @property
    def symbols(self) -> list[str]:
        """The inventory."""
        return self._inventory

    def decode(self, ids: list[int]) -> str:
        """Text of ids from which repeats are already removed. Blanks are skipped; the unknown id gives ``⁇``."""
        return " ".join(self.spellings(ids))

    def labels(self) -> list[str | None]:
        """Spelling of each id. Each symbol is a word, so it begins with a space. None for blank and unknown."""
        return [None] * FIRST_LABEL_ID + [f" {symbol}" for symbol in self.symbols]

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {"kind": "symbols", "symbols": list(self.symbols), "normalizer": self.normalizer}


@dataclass(frozen=True, kw_only=True)
class Symbols:
    """The ``symbols`` option: the text consists of symbols separated by spaces, and each symbol is a CTC label.

    Attributes:
        symbols: Inventory. None takes all symbols of the train split.
        normalizer: Name of the text normalizer that is applied before the text is split. Use ``none`` if case
            distinguishes symbols.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    symbols: list[str] | None
    normalizer: NormalizerName

    def build(self, *, train: Iterable[Utterance], checkpoint: "PretrainedVocabulary") -> SymbolTokenizer:
        """Tokenizer with the given inventory, or with the inventory of ``train`` if none is given."""
        return SymbolTokenizer.build(self.symbols, train=train, normalizer=self.normalizer)
