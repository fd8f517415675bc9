"""Writes a tokenizer of this package in the files of transformers.

    kind       class of transformers            files, besides tokenizer_config.json
    whisper    WhisperTokenizer                 tokenizer.json
    char       Wav2Vec2CTCTokenizer             vocab.json
    symbols    Wav2Vec2PhonemeCTCTokenizer      vocab.json
    pieces     ParakeetTokenizer                tokenizer.json

The blank of CTC is the padding token, and all ids stay as they are.
"""

import base64
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.errors import CheckpointError, UserError
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import UNKNOWN_ID, Tokenizer

# What decoding writes for the unknown label. SentencePiece writes a space as "▁", and spaces around unknown pieces.
_UNKNOWN, _SPACE = "⁇", "▁"
# What stands for a space in vocab.json. transformers loses another delimiter when it loads a tokenizer.
_DELIMITER = "|"
_TIMESTAMP_STEP_S = 0.02

Settings = dict[str, Any]
"""Content of tokenizer_config.json."""


def tokenizer_refusal(tokenizer: Tokenizer) -> UserError | None:
    """Why transformers cannot hold a tokenizer, or None."""
    kind = tokenizer.state()["kind"]
    if kind == "char" and _DELIMITER in tokenizer.state()["characters"]:
        what = f"has the character {_DELIMITER} in its alphabet, by which transformers writes a space"
        return CheckpointError("model", what, "train with a tokenizer.normalizer that removes it")
    if kind in _WRITERS:
        return None
    what = f"has a tokenizer of its own ({kind}), which transformers does not know"
    return CheckpointError("model", what, f"transformers holds {', '.join(_WRITERS)}")


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, processor: str) -> None:
    """Write the files of a tokenizer.

    Args:
        tokenizer: A tokenizer without a `tokenizer_refusal`.
        folder: An existing folder.
        processor: Name of transformers' class that joins tokenizer and feature extractor.
    """
    settings = _WRITERS[tokenizer.state()["kind"]](tokenizer, folder)
    write_json(folder / "tokenizer_config.json", {**settings, "processor_class": processor})


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON."""
    with written_whole(path) as file:
        file.write(f"{to_json(value, indent=2)}\n")


def _write_whisper(tokenizer: Any, folder: Path) -> Settings:
    content = with_timestamps(tokenizer)
    (folder / "tokenizer.json").write_text(to_json(content), encoding="utf-8")
    end = "<|endoftext|>"
    return {
        "tokenizer_class": "WhisperTokenizer",
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), end),
        "model_max_length": 1024,
    }


def with_timestamps(tokenizer: WhisperTokenizer) -> dict[str, Any]:
    """Content of a Whisper's tokenizer.json, with the timestamps that some published files leave out."""
    content: dict[str, Any] = json.loads(tokenizer.state()["tokenizer_json"])
    known = {token["id"] for token in content["added_tokens"]}
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    first = tokenizer.timestamp_begin_id
    content["added_tokens"] += [
        {"id": i, "content": f"<|{(i - first) * _TIMESTAMP_STEP_S:.2f}|>", **kind}
        for i in range(first, tokenizer.vocab_size)
        if i not in known
    ]
    return content


def _free(candidates: Sequence[str], taken: Collection[str]) -> str:
    """The first candidate that is not a label."""
    return next(name for name in candidates if name not in taken)


def _specials(labels: Sequence[str | None]) -> tuple[str, str]:
    """Spellings of the blank and of the unknown label that no label has."""
    taken = [label for label in labels if label is not None]
    return _free(("<pad>", "<blank>", "<ctc_blank>"), taken), _free((_UNKNOWN, "<unk>", "<ctc_unknown>"), taken)


def _write_vocabulary(tokens: Sequence[str], folder: Path) -> None:
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})


def _write_characters(tokenizer: Any, folder: Path) -> Settings:
    characters: list[str] = tokenizer.characters
    blank, unknown = _specials(characters)
    _write_vocabulary([blank, unknown, *(_DELIMITER if one == " " else one for one in characters)], folder)
    return {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": blank,
        "unk_token": unknown,
        "bos_token": None,
        "eos_token": None,
        "word_delimiter_token": _DELIMITER,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
    }


def _write_symbols(tokenizer: Any, folder: Path) -> Settings:
    blank, unknown = _specials(tokenizer.symbols)
    _write_vocabulary([blank, unknown, *tokenizer.symbols], folder)
    return {
        "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer",
        "pad_token": blank,
        "unk_token": unknown,
        "bos_token": None,
        "eos_token": None,
        "word_delimiter_token": None,
        "phone_delimiter_token": " ",
        "do_phonemize": False,
    }


def _write_pieces(tokenizer: Any, folder: Path) -> Settings:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    pieces: Any = SentencePieceProcessor(model_proto=base64.b64decode(tokenizer.state()["model"]))
    spelled = [str(pieces.id_to_piece(i)) for i in range(pieces.get_piece_size())]
    blank, unknown = _free(("<pad>", "<blank>", "<ctc_blank>"), spelled), f"{_SPACE}{_UNKNOWN}{_SPACE}"
    # The unknown piece is piece 0, so that it follows the blank.
    spelled[0] = unknown
    scores = [float(pieces.get_score(i)) for i in range(len(spelled))]
    # The score of a piece of BPE is its rank, and of a unigram model its log-probability.
    if all(score == round(score) for score in scores):
        ids = {token: i for i, token in enumerate([blank, *spelled])}
        merges = _merges(spelled, scores)
        model: Any = models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True)
    else:
        model = models.Unigram([(blank, 0.0), *zip(spelled, scores, strict=True)], unk_id=UNKNOWN_ID)
    fast: Any = Fast(model)
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    # Not Metaspace, which removes all spaces of the first piece.
    fast.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    fast.save(str(folder / "tokenizer.json"))
    return {
        "tokenizer_class": "ParakeetTokenizer",
        "pad_token": blank,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
    }


def _merges(pieces: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges of a BPE model, in order of the rank of what they make."""
    rank = {piece: i for i, piece in enumerate(pieces)}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in zip(pieces, scores, strict=True):
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [
            (-score, rank[left], rank[right], left, right) for left, right in halves if {left, right} <= set(rank)
        ]
    return [(left, right) for *_, left, right in sorted(found)]


_WRITERS: dict[str, Callable[[Any, Path], Settings]] = {
    "whisper": _write_whisper,
    "char": _write_characters,
    "symbols": _write_symbols,
    "pieces": _write_pieces,
}
