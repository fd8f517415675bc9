"""The models of a server: their names, and what each can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from ssl_asr.data.languages import find_language, given_language, language_code
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.decoding.alignment import Measure
from ssl_asr.errors import ConfigError
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.checkpoints import Say
from ssl_asr.training.memory import keep_freed_memory
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Downmix, Utterance

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model of the server.

    Attributes:
        name: What clients call it.
        module: The model.
        long_form: How long recordings are split, and voice activity detection.
        downmix: What several channels become.
        measure: Measure of confidence of its words. None if it cannot time words.
        whisper: Tokenizer of a Whisper. None for other models.
    """

    name: str
    module: ASRModule
    long_form: LongForm
    downmix: Downmix
    measure: Measure | None
    whisper: WhisperTokenizer | None

    @classmethod
    def of(cls, name: str, module: ASRModule, *, long_form: LongForm, downmix: Downmix | None = None) -> "ServedModel":
        """A loaded model with a name."""
        whisper = cast(WhisperTokenizer, module.tokenizer) if module.task_name == "seq2seq" else None
        return cls(
            name=name,
            module=module.eval(),
            long_form=long_form,
            downmix=module.downmix if downmix is None else downmix,
            measure=module.confidence_measure("max_prob", required=False),
            whisper=whisper,
        )

    @property
    def translates(self) -> bool:
        """Whether it translates into English."""
        return self.whisper is not None and self.whisper.is_multilingual

    @property
    def language(self) -> str | None:
        """Language of recordings for which none is given or detected; None if it is not known."""
        if self.whisper is None:
            return None
        return self.whisper.language or (None if self.whisper.is_multilingual else "en")

    def check(self, language: str | None, task: Task, prompt: str | None) -> str | None:
        """The language of a request, as the model takes it.

        Raises:
            ConfigError: The model does not take the language, the task or the prompt.
        """
        language = given_language(language)
        if task == "translate" and not self.translates:
            what = f"{self.name} does not translate"
            raise ConfigError("model", what, "use a multilingual Whisper, or /v1/audio/transcriptions")
        if language is not None and find_language(language) is None:
            raise ConfigError("language", f"'{language}' is not a known language", "use a code such as en, or none")
        if self.whisper is None:
            if prompt:
                raise ConfigError("prompt", f"{self.name} takes no prompt", "leave it out")
            return None if language is None else language_code(language)
        # Raises for languages that the checkpoint does not have.
        self.whisper.prompt(Utterance("language", "", 0.0, lang=language or self.language or "en", task=task))
        if prompt:
            try:
                self.whisper.previous(prompt)
            except ConfigError as error:
                raise ConfigError("prompt", error.what, error.remedy) from None
        return language


def names_of(models: Sequence[str]) -> list[str]:
    """What clients call models: the last part of a path, or the name as it is given.

    Example:
        >>> names_of(["openai/whisper-tiny.en"])
        ['openai/whisper-tiny.en']
    """
    short = [Path(model).resolve().name if Path(model).exists() else model for model in models]
    return [name if short.count(name) == 1 else model for name, model in zip(short, models, strict=True)]


def load_models(
    models: Sequence[str],
    options: InferenceOptions,
    *,
    long_form: LongForm,
    downmix: Downmix | None,
    device: torch.device,
    say: Say,
) -> list[ServedModel]:
    """Load the models of a server.

    Raises:
        CheckpointError: There is no such model.
        ConfigError: A model is given twice, or an option does not go with a model.
    """
    twice = next((model for model in models if models.count(model) > 1), None)
    if twice is not None:
        raise ConfigError("model", f"{twice} is given twice", "give each model once")
    if device.type == "cpu":
        keep_freed_memory()
    return [
        ServedModel.of(name, load_model(model, options, say).to(device), long_form=long_form, downmix=downmix)
        for name, model in zip(names_of(models), models, strict=True)
    ]
