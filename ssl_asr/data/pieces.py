"""The subword tokenizer for CTC (SentencePiece), and the option that builds it."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, NormalizerName, Utterance, VocabularySize

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary


# SentencePiece writes a space as this character, so it cannot stand for itself.
_SPACE = "▁"
# No text contains these code points, which Unicode reserves for internal use.
_UNSPELLED, _UNKNOWN_PIECE = "\ufdd0", "\ufdd1"


class PieceTokenizer:
    """One id per SentencePiece piece, for CTC.

    Id 0 is the blank. Id 1 is the unknown piece, which is piece 0 of the SentencePiece model. The spelling of a special
    piece in a text, such as ``<unk>`` or ``<s>``, is text. ``▁``, which SentencePiece writes for a space, is unknown.

    Args:
        model: The trained SentencePiece model, base64-encoded.
        normalizer: Name of the text normalizer that is applied before encoding. SentencePiece's own
            normalization is off.
    """

    unit: ClassVar[str] = "pieces"

    def __init__(self, *, model: str, normalizer: str) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = model
        self._pieces: Any = SentencePieceProcessor(model_proto=base64.b64decode(model))
        self.normalizer = normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")

    @classmethod
    def from_texts(cls, utterances: Iterable[Utterance], *, options: "Pieces") -> "PieceTokenizer":
        """Tokenizer trained on the normalized texts. Equal texts give an equal model.

        Raises:
            ManifestError: The texts are empty.
            ConfigError: SentencePiece cannot make ``options.size`` pieces from the texts.
        """
        from sentencepiece import SentencePieceTrainer

        normalize = get_normalizer(options.normalizer, key="tokenizer.normalizer")
        given = ((text, u.lang) for u in utterances for text in u.texts)
        texts = [text for written, lang in given if (text := normalize(written, lang))]
        if not texts:
            raise ManifestError("train manifest", "has no text", "SentencePiece learns its pieces from text")
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
                unk_piece=_UNKNOWN_PIECE,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            detail = str(error).rpartition("] ")[2].strip() or str(error)
            what = f"SentencePiece cannot make {options.size} pieces from the text of the train split: {detail}"
            raise ConfigError("tokenizer.size", what, "choose another size") from None
        return cls(model=base64.b64encode(written.getvalue()).decode(), normalizer=options.normalizer)

    @property
    def vocab_size(self) -> int:
        """Number of SentencePiece pieces plus 1, for the blank."""
        return int(self._pieces.get_piece_size()) + 1

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the pieces of the normalized text."""
        return [i + 1 for i in self._pieces.encode(self._spelled(utterance))]

    def _spelled(self, utterance: Utterance) -> str:
        return self._normalize(utterance.text, utterance.lang).replace(_SPACE, _UNSPELLED)

    def unseen(self, utterance: Utterance) -> list[str]:
        """Characters of the normalized text that the unknown piece stands for, repeats included."""
        pieces = self._pieces.encode(self._spelled(utterance), out_type=str)
        unknown = "".join(piece for piece in pieces if self._pieces.is_unknown(self._pieces.piece_to_id(piece)))
        return list(unknown.replace(_SPACE, "").replace(_UNSPELLED, _SPACE))

    def decode(self, ids: list[int]) -> str:
        """Text of ids from which repeats are already removed. Blanks are skipped; the unknown id gives ``⁇``."""
        return " ".join(str(self._pieces.decode([i - 1 for i in ids if i != BLANK_ID])).split())

    def labels(self) -> list[str | None]:
        """Spelling of each id. The first piece of a word begins with a space. None for blank and unknown."""
        pieces = [str(self._pieces.id_to_piece(i)) for i in range(self._pieces.get_piece_size())]
        spellings = [None if self._pieces.is_unknown(i) else piece.replace("▁", " ") for i, piece in enumerate(pieces)]
        return [None, *spellings]

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {"kind": "pieces", "model": self._model, "normalizer": self.normalizer}


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The ``bpe`` and ``unigram`` options: a SentencePiece model trained on the train split.

    Attributes:
        model: ``bpe`` for byte-pair merges, ``unigram`` for a unigram language model.
        size: Number of labels, including the unknown piece and excluding the blank.
        normalizer: Name of the text normalizer that is applied before encoding.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    model: Literal["bpe", "unigram"]
    size: VocabularySize
    normalizer: NormalizerName

    def build(self, *, train: Iterable[Utterance], checkpoint: "PretrainedVocabulary") -> PieceTokenizer:
        """Tokenizer trained on the texts of ``train``."""
        return PieceTokenizer.from_texts(train, options=self)
