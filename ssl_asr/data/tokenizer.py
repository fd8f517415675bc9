"""Characters for CTC, and Whisper's own byte-pair tokens with its prompt.

Both are described wholly by plain data (`state`), which is what a checkpoint keeps.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_asr.data.pieces import PieceTokenizer, SymbolTokenizer
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import CheckpointError, ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID, Tokenizer, Utterance


@dataclass(frozen=True, kw_only=True)
class Characters:
    """The ``char`` option.

    Attributes:
        characters: the alphabet; null takes the train split's.
        normalizer: the named normaliser that training text goes through.
    """

    characters: str | None
    normalizer: str


@dataclass(frozen=True, kw_only=True)
class PretrainedCharacters:
    """The ``pretrained`` option: the alphabet of a checkpoint that is fine-tuned with CTC already.

    Attributes:
        normalizer: the named normaliser that training text goes through.
    """

    normalizer: str


@dataclass(frozen=True, kw_only=True)
class WhisperTokens:
    """The ``whisper`` option: the checkpoint's own tokenizer.

    Attributes:
        language: used where a manifest line names none; null is for English-only checkpoints.
        task: transcribe or translate, where a line names none.
        normalizer: the named normaliser that training text goes through.
    """

    language: str | None
    task: str
    normalizer: str


class CharTokenizer:
    """One id a character, for CTC: 0 is the blank, 1 stands for a character never seen in training.

    The blank is no label and is distinct from the unknown character; padding has no id at all, since targets
    travel with their lengths.

    Args:
        characters: the alphabet, in id order from 2 on.
        normalizer: the named normaliser that text goes through before it is spelt.

    Example:
        >>> tokenizer = CharTokenizer(characters=" abc", normalizer="lower")
        >>> tokenizer.decode([4, 2, 3])
        'b a'
    """

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
        """The alphabet of these texts (the train split's, and no other), sorted by code point."""
        normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        seen: set[str] = set()
        for utterance in utterances:
            seen.update(normalize(utterance.text, utterance.lang))
        if not seen:
            raise ManifestError("train manifest", "has no text at all", "CTC needs characters to learn")
        return cls(characters=sorted(seen), normalizer=normalizer)

    @property
    def vocab_size(self) -> int:
        """Blank, unknown and the alphabet."""
        return len(self.characters) + FIRST_LABEL_ID

    def encode(self, utterance: Utterance) -> list[int]:
        """The ids of the normalised text's characters."""
        text = self._normalize(utterance.text, utterance.lang)
        return [self._ids.get(character, UNKNOWN_ID) for character in text]

    def unseen(self, utterance: Utterance) -> str:
        """The characters of the normalised text that the alphabet lacks, repeats included."""
        text = self._normalize(utterance.text, utterance.lang)
        return "".join(character for character in text if character not in self._ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids from which blanks and repeats are already gone; the unknown id gives ``⁇``."""
        pieces = ["⁇" if i == UNKNOWN_ID else self.characters[i - FIRST_LABEL_ID] for i in ids if i != BLANK_ID]
        return " ".join("".join(pieces).split())

    def labels(self) -> list[str | None]:
        """How each id is spelt; None for the blank and the unknown character."""
        return [None] * FIRST_LABEL_ID + self.characters

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {"kind": "char", "characters": list(self.characters), "normalizer": self.normalizer}


# Half of Whisper's context is for what was said before.
_MOST_PREVIOUS = 223


class WhisperTokenizer:
    """Whisper's tokens, with the prompt each utterance starts from.

    ``encode`` gives the text and the end token; the prompt (start of transcript, language, task, no
    timestamps) comes from `prompt`, so exactly one start token can ever be there. English-only checkpoints
    have neither language nor task tokens.

    Args:
        tokenizer_json: the text of the checkpoint's ``tokenizer.json``.
        language: code used where an utterance names none; None for English-only checkpoints.
        task: used where an utterance names none.
        normalizer: the named normaliser that target text goes through.

    Raises:
        ConfigError: an unknown language, or one given to an English-only checkpoint that is not English.
    """

    def __init__(
        self,
        *,
        tokenizer_json: str,
        language: str | None = None,
        task: str = "transcribe",
        normalizer: str = "none",
    ) -> None:
        from tokenizers import Tokenizer as BytePairTokenizer

        self._json = tokenizer_json
        self._bpe = BytePairTokenizer.from_str(tokenizer_json)
        self.language, self.task, self.normalizer = language, task, normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        self.start_id = self._special("<|startoftranscript|>")
        self.end_id = self._special("<|endoftext|>")
        self.no_timestamps_id = self._special("<|notimestamps|>")
        # English-only vocabularies are one entry shorter, which is how OpenAI tells them apart too.
        self.is_multilingual = self.vocab_size >= 51865
        self.languages = self._find_languages() if self.is_multilingual else {}
        self._check(language, task, where="tokenizer.language")

    @classmethod
    def from_folder(cls, folder: Path, *, language: str | None, task: str, normalizer: str) -> "WhisperTokenizer":
        """The tokenizer of a local checkpoint in transformers' layout."""
        file = folder / "tokenizer.json"
        if file.is_file():
            text = file.read_text(encoding="utf-8")
        else:
            from transformers import WhisperTokenizerFast

            try:
                text = WhisperTokenizerFast.from_pretrained(folder).backend_tokenizer.to_str()
            except (OSError, ValueError) as error:
                raise CheckpointError(str(folder), f"no Whisper tokenizer: {error}") from None
        return cls(tokenizer_json=text, language=language, task=task, normalizer=normalizer)

    def _special(self, token: str) -> int:
        found = self._bpe.token_to_id(token)
        if found is None:
            raise CheckpointError("tokenizer.json", f"has no {token}", "is this a Whisper checkpoint?")
        return int(found)

    def _find_languages(self) -> dict[str, int]:
        first, last = self.start_id + 1, self._special("<|translate|>")
        tokens = ((self._bpe.id_to_token(i), i) for i in range(first, last))
        return {token[2:-2]: i for token, i in tokens if token}

    def _check(self, language: str | None, task: str, where: str) -> None:
        if not self.is_multilingual:
            if language not in (None, "en") or task != "transcribe":
                what = f"language {language!r}, task {task!r} for an English-only checkpoint"
                raise ConfigError(where, what, "take a multilingual checkpoint")
        elif language is not None and language not in self.languages:
            raise ConfigError(where, f"no language '{language}'", f"one of {' '.join(self.languages)}")
        elif task not in ("transcribe", "translate"):
            raise ConfigError(where, f"no task '{task}'", "transcribe or translate")

    @property
    def no_speech_id(self) -> int:
        """The token that stands for silence."""
        return self.no_timestamps_id - 1

    @property
    def timestamp_begin_id(self) -> int:
        """The token of the timestamp 0.00."""
        return self.no_timestamps_id + 1

    @property
    def vocab_size(self) -> int:
        """All tokens, specials and timestamps included."""
        size: int = self._bpe.get_vocab_size(with_added_tokens=True)
        # English-only and multilingual vocabularies end with 1501 timestamp tokens, which some
        # tokenizer.json files leave out; the prompt and text never reach them.
        return size if size > self.no_timestamps_id + 1 else self.no_timestamps_id + 1 + 1501

    def previous(self, text: str) -> list[int]:
        """The tokens of what was said before, which go before a prompt's start.

        Raises:
            ConfigError: they are too many.
        """
        ids = self._bpe.encode(f" {text.strip()}", add_special_tokens=False).ids
        if len(ids) > _MOST_PREVIOUS:
            what = f"the prompt {text[:40]!r}… has {len(ids)} tokens, and {_MOST_PREVIOUS} is the most"
            raise ConfigError("decoder.prompt", what, "shorten it")
        return [self._special("<|startofprev|>"), *ids]

    def prompt(self, utterance: Utterance, *, timestamps: bool = False) -> list[int]:
        """The tokens the decoder is given: start, for multilingual checkpoints language and task, and no timestamps.

        With ``timestamps`` the last is left out.

        Raises:
            ConfigError: neither the utterance nor the config names a language, or it is unknown.
        """
        if not self.is_multilingual:
            self._check(utterance.lang, utterance.task or self.task, where=utterance.where or utterance.id)
            return [self.start_id, *([] if timestamps else [self.no_timestamps_id])]
        language, task = utterance.lang or self.language, utterance.task or self.task
        where = utterance.where or utterance.id
        if language is None:
            raise ConfigError(where, "no language", "set tokenizer.language, or 'lang' in the manifest")
        self._check(language, task, where=where)
        task_id = self._special(f"<|{task}|>")
        return [self.start_id, self.languages[language], task_id, *([] if timestamps else [self.no_timestamps_id])]

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the normalised text, spelt with a leading space as in pretraining, and the end token."""
        text = self._normalize(utterance.text, utterance.lang)
        ids = self._bpe.encode(f" {text}", add_special_tokens=False).ids if text else []
        return [*ids, self.end_id]

    def spell(self, ids: list[int]) -> str:
        """The text of ids as it is, spaces at its ends included; special tokens and timestamps left out."""
        text: str = self._bpe.decode([i for i in ids if i < self.end_id], skip_special_tokens=True)
        return text

    def decode(self, ids: list[int]) -> str:
        """The text of ids, every special token and timestamp left out."""
        return self.spell(ids).strip()

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {
            "kind": "whisper",
            "tokenizer_json": self._json,
            "language": self.language,
            "task": self.task,
            "normalizer": self.normalizer,
        }


def restore_tokenizer(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that ``state`` describes, as a checkpoint holds it."""
    kinds: dict[str, Any] = {
        "char": CharTokenizer,
        "pieces": PieceTokenizer,
        "symbols": SymbolTokenizer,
        "whisper": WhisperTokenizer,
    }
    if state.get("kind") not in kinds:
        raise CheckpointError("tokenizer", f"unknown kind {state.get('kind')!r}", "was it made by ssl_asr?")
    arguments = {key: value for key, value in state.items() if key != "kind"}
    tokenizer: Tokenizer = kinds[state["kind"]](**arguments)
    return tokenizer


def check_coverage(tokenizer: Tokenizer, utterances: Iterable[Utterance], *, where: str) -> None:
    """Refuse training text with characters or symbols that a fixed inventory lacks.

    Raises:
        ManifestError: naming the 20 commonest of them, each with one utterance.
    """
    if not isinstance(tokenizer, CharTokenizer | SymbolTokenizer):
        return
    spells = isinstance(tokenizer, CharTokenizer)
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for utterance in utterances:
        for label in tokenizer.unseen(utterance):
            counts[label] += 1
            example.setdefault(label, utterance.where or utterance.id)
    if counts:
        named = {c: f"{c!r} U+{ord(c):04X}" if spells else repr(c) for c, _ in counts.most_common(20)}
        rows = [f"{named[c]} x{n} (first at {example[c]})" for c, n in counts.most_common(20)]
        kind, key = ("characters", "alphabet") if spells else ("symbols", "inventory")
        what = f"{len(counts)} {kind} are not in the {key}: {'; '.join(rows)}"
        raise ManifestError(where, what, f"extend tokenizer.{kind}, or choose a tokenizer.normalizer")
