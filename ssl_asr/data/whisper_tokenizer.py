"""Whisper's tokenizer with its prompts, and the option that builds it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ssl_asr.data.languages import find_language, given_language, match_language, nearest_language
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.types import NormalizerName, Utterance

if TYPE_CHECKING:
    from ssl_asr.data.tokenizer import PretrainedVocabulary

# Tokens of the decoder's context.
_MAX_TOKENS = 448
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
    and no task token. Special tokens that are spelled out in a text, such as ``<|endoftext|>``, are encoded as text:
    no text gives a special token.

    Args:
        tokenizer_json: Content of the checkpoint's ``tokenizer.json``.
        language: Language of utterances without one, as a code of any form or a name. None for English-only
            checkpoints.
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
        # Without added tokens, so that the spelling of a special token in a text is text.
        self._text_bpe = BytePairTokenizer.from_str(_without_added_tokens(tokenizer_json))
        self.task, self.normalizer = task, normalizer
        self._normalize = get_normalizer(normalizer, key="tokenizer.normalizer")
        self.start_id = self._special("<|startoftranscript|>")
        self.end_id = self._special("<|endoftext|>")
        self.no_timestamps_id = self._special("<|notimestamps|>")
        self.is_multilingual = self.vocab_size >= _MULTILINGUAL_VOCAB_SIZE
        self.languages = self._find_languages() if self.is_multilingual else {}
        language = given_language(language)
        self._check_task(task, where="tokenizer.task")
        self.language = None if language is None else self._language(language, where="tokenizer.language")

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

    def _check_task(self, task: str, where: str) -> None:
        if task not in ("transcribe", "translate"):
            raise ConfigError(where, f"no task '{task}'", "use transcribe or translate")
        if task == "translate" and not self.is_multilingual:
            raise ConfigError(
                where, "task 'translate' with an English-only checkpoint", "use a multilingual checkpoint"
            )

    def _language(self, language: str, where: str) -> str:
        """The name of a language in the vocabulary, such as ``zh`` for ``cmn_hans_cn``; ``en`` if English-only."""
        if not self.is_multilingual:
            found = find_language(language)
            if found is None or found.code != "en":
                what = f"language '{language}' with an English-only checkpoint"
                raise ConfigError(where, what, "use a multilingual checkpoint")
            return found.code
        name = match_language(language, self.languages)
        if name is None:
            what = f"this checkpoint has no language '{language}'"
            raise ConfigError(where, what, nearest_language(language, self.languages))
        return name

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
        ids = self._text_bpe.encode(f" {text.strip()}", add_special_tokens=False).ids
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
        self._check_task(task, where=where)
        given = given_language(utterance.lang) or self.language
        if given is None and self.is_multilingual:
            raise ConfigError(where, "no language", "set tokenizer.language, or 'lang' in the manifest")
        language = "en" if given is None else self._language(given, where=where)
        if not self.is_multilingual:
            return [self.start_id, *last]
        return [self.start_id, self.languages[language], self._special(f"<|{task}|>"), *last]

    def encode(self, utterance: Utterance) -> list[int]:
        """Ids of the normalized text with a leading space, as in pretraining, followed by the end token."""
        text = self._normalize(utterance.text, utterance.lang)
        ids = self._text_bpe.encode(f" {text}", add_special_tokens=False).ids if text else []
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

    def generation_settings(self) -> dict[str, Any]:
        """Token ids of the vocabulary, as a ``GenerationConfig`` of transformers names them."""
        settings: dict[str, Any] = {
            "bos_token_id": self.end_id,
            "eos_token_id": self.end_id,
            "pad_token_id": self.end_id,
            "decoder_start_token_id": self.start_id,
            "max_length": _MAX_TOKENS,
            "no_timestamps_token_id": self.no_timestamps_id,
            "is_multilingual": self.is_multilingual,
            "return_timestamps": False,
        }
        if self.is_multilingual:
            settings["lang_to_id"] = {f"<|{name}|>": i for name, i in self.languages.items()}
            settings["task_to_id"] = {name: self._special(f"<|{name}|>") for name in ("transcribe", "translate")}
        return settings

    def state(self) -> dict[str, Any]:
        """Plain data for `restore_tokenizer`."""
        return {
            "kind": "whisper",
            "tokenizer_json": self._json,
            "language": self.language,
            "task": self.task,
            "normalizer": self.normalizer,
        }


def _without_added_tokens(tokenizer_json: str) -> str:
    """A ``tokenizer.json`` whose special tokens and timestamps have no spelling."""
    return json.dumps({**json.loads(tokenizer_json), "added_tokens": [], "post_processor": None})


@dataclass(frozen=True, kw_only=True)
class WhisperTokens:
    """The ``whisper`` option: the tokenizer of the checkpoint.

    Attributes:
        language: Language of manifest lines without ``lang``, as a code of any form or a name. None for English-only
            checkpoints.
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
