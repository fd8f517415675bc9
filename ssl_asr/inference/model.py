"""Load a model that transcribes, by any of its names."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ssl_asr.build.environment import check_torchaudio
from ssl_asr.build.restore import (
    Speech,
    pretrained_checkpoint,
    pretrained_encoder,
    pretrained_module,
    restore_module,
    saved_tokenizer,
)
from ssl_asr.console import no_message
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.filters import Limits
from ssl_asr.data.languages import given_language
from ssl_asr.decoding.option import DecoderOption
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import Say
from ssl_asr.models.ctc_checkpoints import has_ctc_head
from ssl_asr.models.encoder import SpeechEncoder, Window, one_frame_length
from ssl_asr.models.precision import cast_weights
from ssl_asr.training.checkpoint_files import KEY, read_checkpoint
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, LabelTokenizer, Seconds, Tokenizer, Utterance


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Settings of a loaded model that inference can change; None keeps the model's value.

    Attributes:
        window, tail_s: Window of Whisper's encoder.
        language: Default language of a multilingual Whisper, as a code of any form or a name. None and ``auto`` detect
            it where the manifest names none.
        whisper_task: Task of a pretrained Whisper.
        max_tokens_per_s: Limit on the tokens of a hypothesis, for each second of its utterance.
        decoder: A ``decoder`` option.
        detect_language: Detect the language of every utterance.
        weights: Dtype of the weights, see `ssl_asr.inference.precision`.
        extensions: Packages besides this one whose classes the model may use.
    """

    window: Window | None = None
    tail_s: Seconds | None = None
    language: str | None = None
    whisper_task: Literal["transcribe", "translate"] = "transcribe"
    max_tokens_per_s: float | None = None
    decoder: DecoderOption | None = None
    detect_language: bool = False
    weights: torch.dtype = torch.float32
    extensions: tuple[str, ...] = ()

    def speech(self) -> Speech:
        """Language, task, and for which utterances the language is detected."""
        detect: Literal["missing", "all"] = "all" if self.detect_language else "missing"
        return Speech(language=given_language(self.language), task=self.whisper_task, detect=detect)


def find_checkpoint(name: str) -> Path | None:
    """The checkpoint file of a run directory or path, or None if the name is neither.

    Raises:
        CheckpointError: The directory is neither a run with a checkpoint nor a pretrained model.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    for candidate in (path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt"):
        if candidate.is_file():
            return candidate
    what = "has neither checkpoints/best.ckpt nor config.json"
    raise CheckpointError(name, what, "give a run directory or a pretrained model's folder")


def load_model(name: str, options: InferenceOptions, say: Say = no_message) -> ASRModule:
    """A module that transcribes, in eval mode, from a run directory, checkpoint, backbone option or pretrained name.

    A pretrained Whisper keeps the 30-second window of pretraining unless ``options.window`` says otherwise.

    Raises:
        CheckpointError: There is no such model, or it cannot transcribe without training.
        ConfigError: An option does not go with the model.
    """
    check_torchaudio()
    checkpoint = find_checkpoint(name)
    if checkpoint is None:
        module = pretrained_module(name, options.speech(), say)
    else:
        saved = read_checkpoint(checkpoint)
        module = restore_module(saved, options.speech(), extensions=options.extensions, where=str(checkpoint))
    if options.detect_language and module.task_name != "seq2seq":
        raise ConfigError("detect_language", "this model does not know languages", "use a multilingual Whisper")
    if options.decoder is not None:
        module.set_decoder(options.decoder)
    if options.max_tokens_per_s is not None:
        module.cap_tokens(options.max_tokens_per_s)
    module.speech_encoder.set_window(options.window, options.tail_s)
    cast_weights(module, options.weights)
    return module.eval()


def load_encoder(name: str, options: InferenceOptions, say: Say = no_message) -> SpeechEncoder:
    """The encoder of a run directory, checkpoint, backbone option or pretrained name, frozen and in eval mode.

    Raises:
        CheckpointError: There is no such model.
    """
    check_torchaudio()
    checkpoint = find_checkpoint(name)
    if checkpoint is None:
        encoder = pretrained_encoder(name, options.speech().language, say)
    else:
        saved = read_checkpoint(checkpoint)
        module = restore_module(saved, options.speech(), extensions=options.extensions, where=str(checkpoint))
        encoder = module.speech_encoder
    encoder.set_window(options.window, options.tail_s)
    cast_weights(encoder, options.weights)
    return encoder.requires_grad_(False).eval()


def load_limits(
    name: str, options: InferenceOptions, train: Sequence[Utterance], say: Say = no_message
) -> tuple[Limits, Tokenizer]:
    """What a model can take, and the tokenizer of its texts.

    A pretrained encoder without a head is taken for one that is fine-tuned with CTC on the characters of ``train``.

    Args:
        name: As for `load_model`.
        options: As for `load_model`.
        train: The train split.
        say: Called with messages for the user.

    Raises:
        CheckpointError: There is no such model.
    """
    if find_checkpoint(name) is None:
        source = pretrained_checkpoint(name, options.speech().language, say)
        if "seq2seq" not in source.backbone.tasks and not has_ctc_head(source.folder):
            encoder = load_encoder(name, options, say)
            frames = partial(one_frame_length, encoder)
            limits = Limits(encoder.min_samples / SAMPLE_RATE, encoder.max_s, "the model's window", ctc_frames=frames)
            return limits, CharTokenizer.from_texts(train, normalizer="lower")
    module = load_model(name, options, say)
    return module.limits(), module.tokenizer


def load_label_tokenizer(name: str, *, extensions: Sequence[str] = ()) -> LabelTokenizer:
    """The tokenizer of a CTC or joint model's run directory or checkpoint.

    Raises:
        CheckpointError: There is no such checkpoint, or its model has no labels.
    """
    checkpoint = find_checkpoint(name)
    if checkpoint is None:
        raise CheckpointError(name, "is neither a run directory nor a checkpoint", "give a trained CTC or joint model")
    tokenizer = saved_tokenizer(read_checkpoint(checkpoint)[KEY], None, extensions=extensions)
    if not hasattr(tokenizer, "labels"):
        what = "has Whisper's tokens, not labels"
        raise CheckpointError(name, what, "give a CTC or joint model, or use unit=word")
    labels: Any = tokenizer
    checked: LabelTokenizer = labels
    return checked
