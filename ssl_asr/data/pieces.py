"""Labels for CTC that are more than characters: subword pieces, and symbols such as phonemes.

As with characters, id 0 is the blank and id 1 stands for what training never had.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID, Utterance


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The ``bpe`` and ``unigram`` options: a SentencePiece model trained on the train split and nothing else.

    Attributes:
        model: byte-pair merges, or a unigram language model.
        size: labels, the unknown one included and the blank not.
        normalizer: the named normaliser that training text goes through.
    """

    model: Literal["bpe", "unigram"]
    size: int
    normalizer: str


class PieceTokenizer:
    """Subword pieces of SentencePiece, for CTC.

    Args:
        model: the trained model's bytes in base64.
        normalizer: the named normaliser that text goes through first; SentencePiece adds none of its own.
    """

    def __init__(self, *, model: str, normalizer: str) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = model
        self._pieces: Any = SentencePieceProcessor(model_proto=base64.b64decode(model))
        self.normalizer = normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")

    @classmethod
    def from_texts(cls, utterances: Iterable[Utterance], *, options: Pieces) -> "PieceTokenizer":
        """A model trained on these texts (the train split's); the same texts give the same model.

        Raises:
            ManifestError: there is no text.
            ConfigError: the texts cannot give so many pieces, or so few.
        """
        from sentencepiece import SentencePieceTrainer

        normalize = get_normalizer(options.normalizer, key="tokenizer.normalizer")
        texts = [text for u in utterances if (text := normalize(u.text, u.lang))]
        if not texts:
            raise ManifestError("train manifest", "has no text at all", "pieces are learnt from it")
        written = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type=options.model,
                vocab_size=options.size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            said = str(error).rpartition("] ")[2].strip() or str(error)
            what = f"the train split's text gives no {options.size} pieces: {said}"
            raise ConfigError("tokenizer.size", what, "choose another size") from None
        return cls(model=base64.b64encode(written.getvalue()).decode(), normalizer=options.normalizer)

    @property
    def vocab_size(self) -> int:
        """The blank and SentencePiece's own."""
        return int(self._pieces.get_piece_size()) + 1

    def encode(self, utterance: Utterance) -> list[int]:
        """The ids of the normalised text's pieces."""
        return [i + 1 for i in self._pieces.encode(self._normalize(utterance.text, utterance.lang))]

    def decode(self, ids: list[int]) -> str:
        """The text of ids from which blanks and repeats are already gone; the unknown id gives ``⁇``."""
        return " ".join(str(self._pieces.decode([i - 1 for i in ids if i != BLANK_ID])).split())

    def labels(self) -> list[str | None]:
        """How each id is spelt, a piece that begins a word with a space; None for the blank and the unknown piece."""
        pieces = [str(self._pieces.id_to_piece(i)) for i in range(self._pieces.get_piece_size())]
        spelt = [None if self._pieces.is_unknown(i) else piece.replace("▁", " ") for i, piece in enumerate(pieces)]
        return [None, *spelt]

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {"kind": "pieces", "model": self._model, "normalizer": self.normalizer}


@dataclass(frozen=True, kw_only=True)
class Symbols:
    """The ``symbols`` option: the text is symbols between spaces, phonemes for instance, and each is a label.

    Attributes:
        symbols: the inventory; null takes the train split's.
        normalizer: the named normaliser that text goes through; ``none`` where case tells symbols apart.
    """

    symbols: list[str] | None
    normalizer: str


class SymbolTokenizer:
    """One id a symbol between spaces. What reports call words are then symbols, and the WER is theirs.

    Args:
        symbols: the inventory, in id order from 2 on.
        normalizer: the named normaliser that text goes through before it is split.

    Example:
        >>> tokenizer = SymbolTokenizer(symbols=["AA", "K", "T"], normalizer="none")
        >>> tokenizer.decode([3, 2, 4])
        'K AA T'
    """

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
        """The inventory of these texts (the train split's, and no other), sorted."""
        normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        seen = {symbol for u in utterances for symbol in normalize(u.text, u.lang).split()}
        if not seen:
            raise ManifestError("train manifest", "has no text at all", "CTC needs symbols to learn")
        return cls(symbols=sorted(seen), normalizer=normalizer)

    @property
    def vocab_size(self) -> int:
        """Blank, unknown and the inventory."""
        return len(self.symbols) + FIRST_LABEL_ID

    def _split(self, utterance: Utterance) -> list[str]:
        return self._normalize(utterance.text, utterance.lang).split()

    def encode(self, utterance: Utterance) -> list[int]:
        """The ids of the normalised text's symbols."""
        return [self._ids.get(symbol, UNKNOWN_ID) for symbol in self._split(utterance)]

    def unseen(self, utterance: Utterance) -> list[str]:
        """The symbols of the text that the inventory lacks, repeats included."""
        return [symbol for symbol in self._split(utterance) if symbol not in self._ids]

    def decode(self, ids: list[int]) -> str:
        """The symbols of ids from which blanks and repeats are already gone; the unknown id gives ``⁇``."""
        return " ".join("⁇" if i == UNKNOWN_ID else self.symbols[i - FIRST_LABEL_ID] for i in ids if i != BLANK_ID)

    def labels(self) -> list[str | None]:
        """How each id is spelt, each symbol a word of its own; None for the blank and the unknown symbol."""
        return [None] * FIRST_LABEL_ID + [f" {symbol}" for symbol in self.symbols]

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {"kind": "symbols", "symbols": list(self.symbols), "normalizer": self.normalizer}
