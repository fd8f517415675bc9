"""What the formats that hold Whisper share: its parts, and the refusal of other models."""

import json
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.errors import ConfigError, UserError
from ssl_asr.export.base import ExportModel
from ssl_asr.models.whisper import WINDOW_SAMPLES
from ssl_asr.training.seq2seq import Seq2SeqModule
from ssl_asr.types import SAMPLE_RATE, Seconds, Utterance

DEFAULT_TAIL_S: Seconds = 1.0


@dataclass(frozen=True, kw_only=True)
class WhisperParts:
    """A Whisper model with its tokenizer and generation settings.

    Attributes:
        net: ``WhisperForConditionalGeneration`` of transformers.
        tokenizer: Whisper's tokens, with the default language and task.
        generation: Settings of generation_config.json, such as ``suppress_tokens`` and ``alignment_heads``.
        tail_s: Seconds of silence after the utterance where less than 30 s is encoded.
    """

    net: Any
    tokenizer: WhisperTokenizer
    generation: dict[str, Any]
    tail_s: Seconds

    @classmethod
    def of(cls, model: ExportModel) -> "WhisperParts":
        """The parts of a model that `whisper_refusal` does not refuse."""
        assert model.net is not None
        module = cast(Seq2SeqModule, model.module)
        tail_s = DEFAULT_TAIL_S if model.tail_s is None else model.tail_s
        return cls(net=model.net, tokenizer=module.tokenizer, generation=module.model.generation, tail_s=tail_s)

    @property
    def tokenizer_json(self) -> str:
        """Content of tokenizer.json."""
        return str(self.tokenizer.state()["tokenizer_json"])

    @property
    def n_mels(self) -> int:
        """Number of mel bands of the input."""
        bands: int = self.net.config.num_mel_bins
        return bands

    def tokens(self) -> list[str]:
        """Spelling of every id of the output layer. Ids that the tokenizer lacks are timestamps, or have no use."""
        content = json.loads(self.tokenizer_json)
        spelled = {i: token for token, i in content["model"]["vocab"].items()}
        spelled |= {token["id"]: token["content"] for token in content["added_tokens"]}
        begin = self.tokenizer.timestamp_begin_id
        size: int = self.net.config.vocab_size
        # Multilingual models have an empty token, by which CTranslate2 knows them.
        return [spelled[i] if i in spelled else f"<|{(i - begin) * 0.02:.2f}|>" for i in range(size)]

    def suppressed(self) -> tuple[list[int], list[int]]:
        """Ids that are never generated, and ids that are not generated first."""
        names = ("suppress_tokens", "begin_suppress_tokens")
        always, first = ([int(i) for i in self.generation.get(name) or ()] for name in names)
        return always, first

    def alignment_heads(self) -> list[tuple[int, int]]:
        """Layer and head of the cross-attention heads that word times are computed from.

        If the checkpoint lists none, all heads of the upper half of the decoder.
        """
        listed = self.generation.get("alignment_heads")
        if listed:
            return [(int(layer), int(head)) for layer, head in listed]
        layers, heads = self.net.config.decoder_layers, self.net.config.decoder_attention_heads
        return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]

    def language(self, detected: str | None = None) -> str | None:
        """Language of the prompt: the tokenizer's, or else the detected one. None for English-only models."""
        return (self.tokenizer.language or detected) if self.tokenizer.is_multilingual else None

    def prompt(self, detected: str | None = None) -> list[int]:
        """Ids before the text, without timestamps. ``detected`` is used if the tokenizer has no language."""
        return self.tokenizer.prompt(Utterance("", "", 0.0, lang=self.language(detected)))


def whisper_refusal(model: ExportModel, name: str) -> UserError | None:
    """Why a format that holds Whisper with its decoder cannot hold a model. None if it can."""
    if model.module.task_name != "seq2seq":
        what = f"is {name}, which holds Whisper with its decoder, and this model is of task {model.module.task_name}"
        return ConfigError("to", what, "use to=onnx")
    if model.net is None:
        what = f"is {name}, and transformers has no class of this model's shape"
        return ConfigError("to", what, "use to=onnx")
    return None


def with_silence(waveform_T: Tensor, seconds: Seconds | None) -> NDArray[np.float32]:
    """The first 30 s of a waveform and silence after it, float32, shape (samples,).

    Args:
        waveform_T: float32, shape (samples,), 16 kHz.
        seconds: Seconds of silence, up to 30 s in total, or None to fill 30 s.
    """
    samples = waveform_T.numpy().astype(np.float32)[:WINDOW_SAMPLES]
    wanted = WINDOW_SAMPLES if seconds is None else min(len(samples) + int(seconds * SAMPLE_RATE), WINDOW_SAMPLES)
    return np.pad(samples, (0, wanted - len(samples)))
