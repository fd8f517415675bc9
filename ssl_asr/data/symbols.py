"""The symbol tokenizer for CTC (phonemes, for example), and the option that builds it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID, NormalizerName, Utterance

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary


class SymbolTokenizer:
    """One id per symbol, for CTC. Symbols are separated by spaces.

    Id 0 is the blank. Id 1 is the unknown symbol. Reports count each symbol as a word, so the WER is the
    symbol error rate.

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
        self.symbols = list(symbols)
        self.normalizer = normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, start=FIRST_LABEL_ID)}

    @classmethod
    def from_texts(cls, utterances: Iterable[Utterance], *, normalizer: str) -> "SymbolTokenizer":
        """Tokenizer with all symbols of the normalized texts as its inventory, sorted.

        Raises:
            ManifestError: The texts are empty.
        """
        normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        seen = {symbol for u in utterances for symbol in normalize(u.text, u.lang).split()}
        if not seen:
            raise ManifestError("train manifest", "has no text", "CTC needs symbols to learn")
        return cls(symbols=sorted(seen), normalizer=normalizer)

    @property
    def vocab_size(self) -> int:
        """Size of the inventory plus 2, for the blank and the unknown symbol."""
        return len(self.symbols) + FIRST_LABEL_ID

    def _split(self, utterance: Utterance) -> list[str]:
        return self._normalize(utterance.text, utterance.lang).split()

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the symbols of the normalized text."""
        return [self._ids.get(symbol, UNKNOWN_ID) for symbol in self._split(utterance)]

    def unseen(self, utterance: Utterance) -> list[str]:
        """Symbols of the normalized text that are not in the inventory, repeats included."""
        return [symbol for symbol in self._split(utterance) if symbol not in self._ids]

    def decode(self, ids: list[int]) -> str:
        """Text of ids from which repeats are already removed. Blanks are skipped; the unknown id gives ``⁇``."""
        return " ".join("⁇" if i == UNKNOWN_ID else self.symbols[i - FIRST_LABEL_ID] for i in ids if i != BLANK_ID)

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
        if self.symbols is None:
            return SymbolTokenizer.from_texts(train, normalizer=self.normalizer)
        return SymbolTokenizer(symbols=self.symbols, normalizer=self.normalizer)
