"""Whisper's tokenizer with its prompts, and the option that builds it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.types import NormalizerName, Utterance

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary

# Whisper reserves half of its 448-token context for the text before the utterance, start token included.
_MAX_PREVIOUS_TOKENS = 223
# Multilingual vocabularies have one entry more than English-only vocabularies. OpenAI uses the same test.
_MULTILINGUAL_VOCAB_SIZE = 51865
# Timestamps 0.00 to 30.00 in steps of 0.02 s.
_TIMESTAMP_TOKENS = 1501


class WhisperTokenizer:
    """Whisper's byte-pair tokens, and the prompt that each utterance starts with.

    A target is ``prompt(utterance) + encode(utterance)``:

        <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>   the text   <|endoftext|>
        |---------------------- prompt ----------------------------|  |------- encode -------|

    Only `prompt` adds the start token, so a target has exactly one. English-only checkpoints have no language
    and no task token.

    Args:
        tokenizer_json: Content of the checkpoint's ``tokenizer.json``.
        language: Language code for utterances without one. None for English-only checkpoints.
        task: ``transcribe`` or ``translate``, for utterances without a task.
        normalizer: Name of the text normalizer that is applied to target text.

    Raises:
        ConfigError: The language or task does not exist, or does not go with an English-only checkpoint.
        CheckpointError: The vocabulary lacks one of Whisper's special tokens.
    """

    unit: ClassVar[str] = "tokens"

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
        self.is_multilingual = self.vocab_size >= _MULTILINGUAL_VOCAB_SIZE
        self.languages = self._find_languages() if self.is_multilingual else {}
        self._check(language, task, where="tokenizer.language")

    @classmethod
    def from_folder(cls, folder: Path, *, language: str | None, task: str, normalizer: str) -> "WhisperTokenizer":
        """Tokenizer of a local checkpoint in the layout of transformers.

        Raises:
            CheckpointError: The folder holds no Whisper tokenizer.
            ConfigError: See the class.
        """
        file = folder / "tokenizer.json"
        if file.is_file():
            text = file.read_text(encoding="utf-8")
        else:
            from transformers import WhisperTokenizerFast

            try:
                text = WhisperTokenizerFast.from_pretrained(folder).backend_tokenizer.to_str()
            except (OSError, ValueError) as error:
                raise CheckpointError(str(folder), f"has no Whisper tokenizer: {error}") from None
        return cls(tokenizer_json=text, language=language, task=task, normalizer=normalizer)

    def _special(self, token: str) -> int:
        found = self._bpe.token_to_id(token)
        if found is None:
            raise CheckpointError("tokenizer.json", f"has no token {token}", "check that this is a Whisper checkpoint")
        return int(found)

    def _find_languages(self) -> dict[str, int]:
        first, last = self.start_id + 1, self._special("<|translate|>")
        tokens = ((self._bpe.id_to_token(i), i) for i in range(first, last))
        return {token[2:-2]: i for token, i in tokens if token}

    def _check(self, language: str | None, task: str, where: str) -> None:
        if not self.is_multilingual:
            if language not in (None, "en") or task != "transcribe":
                what = f"language {language!r}, task {task!r} with an English-only checkpoint"
                raise ConfigError(where, what, "use a multilingual checkpoint")
        elif language is not None and language not in self.languages:
            raise ConfigError(where, f"no language '{language}'", f"use one of {' '.join(self.languages)}")
        elif task not in ("transcribe", "translate"):
            raise ConfigError(where, f"no task '{task}'", "use transcribe or translate")

    @property
    def no_speech_id(self) -> int:
        """Id of the token for silence."""
        return self.no_timestamps_id - 1

    @property
    def timestamp_begin_id(self) -> int:
        """Id of the timestamp 0.00. Timestamps have consecutive ids in steps of 0.02 s."""
        return self.no_timestamps_id + 1

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including special tokens and timestamps."""
        size: int = self._bpe.get_vocab_size(with_added_tokens=True)
        # Some tokenizer.json files leave out the timestamps, which are the last tokens of every vocabulary.
        return size if size > self.no_timestamps_id + 1 else self.no_timestamps_id + 1 + _TIMESTAMP_TOKENS

    def previous(self, text: str) -> list[int]:
        """Tokens of the text before the utterance. They go in front of the prompt.

        Raises:
            ConfigError: The text has more than 223 tokens.
        """
        ids = self._bpe.encode(f" {text.strip()}", add_special_tokens=False).ids
        if len(ids) > _MAX_PREVIOUS_TOKENS:
            what = f"the prompt {text[:40]!r}… has {len(ids)} tokens, the limit is {_MAX_PREVIOUS_TOKENS}"
            raise ConfigError("decoder.prompt", what, "shorten it")
        return [self._special("<|startofprev|>"), *ids]

    def prompt(self, utterance: Utterance, *, timestamps: bool = False) -> list[int]:
        """Prompt of the decoder: start, language and task (multilingual checkpoints only), no timestamps.

        With ``timestamps``, the last token is left out.

        Raises:
            ConfigError: Neither the utterance nor the tokenizer has a language, or the language does not exist.
        """
        last = [] if timestamps else [self.no_timestamps_id]
        where, task = utterance.where or utterance.id, utterance.task or self.task
        if not self.is_multilingual:
            self._check(utterance.lang, task, where=where)
            return [self.start_id, *last]
        language = utterance.lang or self.language
        if language is None:
            raise ConfigError(where, "no language", "set tokenizer.language, or 'lang' in the manifest")
        self._check(language, task, where=where)
        return [self.start_id, self.languages[language], self._special(f"<|{task}|>"), *last]

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the normalized text with a leading space, as in pretraining, followed by the end token."""
        text = self._normalize(utterance.text, utterance.lang)
        ids = self._bpe.encode(f" {text}", add_special_tokens=False).ids if text else []
        return [*ids, self.end_id]

    def unseen(self, utterance: Utterance) -> list[str]:
        """Always empty: byte-level tokens can spell every text."""
        return []

    def spell(self, ids: list[int]) -> str:
        """Text of ids, without special tokens and timestamps. Spaces at both ends are kept."""
        text: str = self._bpe.decode([i for i in ids if i < self.end_id], skip_special_tokens=True)
        return text

    def decode(self, ids: list[int]) -> str:
        """Text of ids, without special tokens and timestamps. Words are separated by single spaces."""
        return " ".join(self.spell(ids).split())

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {
            "kind": "whisper",
            "tokenizer_json": self._json,
            "language": self.language,
            "task": self.task,
            "normalizer": self.normalizer,
        }


@dataclass(frozen=True, kw_only=True)
class WhisperTokens:
    """The ``whisper`` option: the tokenizer of the checkpoint.

    Attributes:
        language: Language code for manifest lines without ``lang``. None for English-only checkpoints.
        task: ``transcribe`` or ``translate``, for manifest lines without ``task``.
        normalizer: Name of the text normalizer that is applied to training text.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"seq2seq"})

    language: str | None
    task: Literal["transcribe", "translate"]
    normalizer: NormalizerName

    def build(self, *, train: Iterable[Utterance], checkpoint: "PretrainedVocabulary") -> WhisperTokenizer:
        """Tokenizer of ``checkpoint``.

        Raises:
            CheckpointError: The checkpoint has no Whisper tokenizer.
            ConfigError: The language or task does not go with the checkpoint.
        """
        return WhisperTokenizer.from_folder(
            checkpoint.folder, language=self.language, task=self.task, normalizer=self.normalizer
        )
