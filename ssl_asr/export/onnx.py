"""ONNX graphs: CTC models from the waveform to log-probabilities, and Whisper for sherpa-onnx.

Files of Whisper, see `ssl_asr.export.onnx_whisper`::

    encoder.onnx, decoder.onnx     for sherpa-onnx
    tokens.txt                     text tokens in base64, with their ids

Files of CTC models, see `ssl_asr.export.onnx_ctc`::

    model.onnx                     waveforms and lengths -> log-probabilities and their lengths
    vocab.txt                      spelling of each label, with its id
"""

import base64
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssl_asr.errors import ConfigError, UserError
from ssl_asr.export.base import ExportModel, Runtime, TimedWord
from ssl_asr.export.ggml import text_tokens
from ssl_asr.export.onnx_ctc import CTC_AXES, CTC_INPUTS, CTC_OUTPUTS, CtcGraph, ctc_texts, label_lines, traced
from ssl_asr.export.onnx_whisper import (
    AXES,
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    ENCODER_OUTPUTS,
    DecoderGraph,
    EncoderGraph,
    example_inputs,
    metadata,
)
from ssl_asr.export.whisper import WhisperParts, whisper_refusal, with_silence
from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.models.whisper import HOP
from ssl_asr.textfiles import written_whole
from ssl_asr.types import SAMPLE_RATE

_OPSET = 17
# Protocol buffers hold up to 2 GiB. Larger weights go into a file of their own.
_MOST_BYTES = 1_900_000_000
# sherpa-onnx cuts longer input, and appends at least one frame. The encoder takes 3000 frames.
_SHERPA_FRAMES, _ENCODER_FRAMES = 2949, 3000

_WHISPER_USAGE = """\
sherpa-onnx, with up to 29 s of speech in the 30 s of Whisper's training:

```python
import numpy as np
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OfflineRecognizer.from_whisper(
    encoder="{folder}/encoder.onnx",
    decoder="{folder}/decoder.onnx",
    tokens="{folder}/tokens.txt",{options}
    tail_paddings=51,
)
audio, rate = soundfile.read("speech.wav", dtype="float32")
audio = np.pad(audio, (0, max(0, int(29.49 * rate) - len(audio))))
stream = recognizer.create_stream()
stream.accept_waveform(rate, audio)
recognizer.decode_stream(stream)
print(stream.result.text)
```

To encode an utterance and {tail_s:g} s of silence instead, use `tail_paddings=1` and
`audio = np.pad(audio, (0, int({tail_s:g} * rate)))`. sherpa-onnx writes at most 6 tokens for each second of the
waveform.
"""

_CTC_USAGE = """\
onnxruntime. The waveform is 16 kHz, of any loudness: normalization and spectrograms are in the graph.{limits}

```python
import numpy as np
import onnxruntime
import soundfile

session = onnxruntime.InferenceSession("{folder}/model.onnx")
audio, rate = soundfile.read("speech.wav", dtype="float32")
inputs = {{"waveforms": audio[None], "waveform_lengths": np.array([len(audio)])}}
log_probs, lengths = session.run(None, inputs)
labels = [line.rstrip("\\n").rsplit(" ", 1)[0] for line in open("{folder}/vocab.txt", encoding="utf-8")]
best = log_probs[0, : lengths[0]].argmax(-1)
kept = [label for label, before in zip(best, [0, *best[:-1]]) if label != before and label != 0]
print("".join(labels[label] for label in kept).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip())
```
"""


class Onnx:
    """CTC models and Whisper as ONNX graphs. See `Format`."""

    name: ClassVar[str] = "onnx"
    extra: ClassVar[str | None] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "sherpa_onnx")
    quantizations: ClassVar[tuple[str, ...]] = ("float32", "int8")
    real_length: ClassVar[bool] = True

    def refusal(self, model: ExportModel) -> UserError | None:
        """Joint models, and Whisper without a class of transformers."""
        if model.module.task_name == "seq2seq":
            return whisper_refusal(model, self.name)
        if model.module.task_name != "ctc":
            return ConfigError("to", f"is onnx, and this model is of task {model.module.task_name}", "use task=ctc")
        return None

    def write(self, model: ExportModel, folder: Path, *, quantization: str) -> None:
        """See `Format`."""
        if model.module.task_name == "seq2seq":
            _write_whisper(WhisperParts.of(model), folder, quantization)
        else:
            _write_ctc(model, folder, quantization)

    def runtime(self, folder: Path, model: ExportModel) -> Runtime:
        """Whisper in sherpa-onnx, CTC models in onnxruntime, on the CPU. See `Format`."""
        if model.module.task_name != "seq2seq":
            return _OnnxRuntime(folder, model)
        from sherpa_onnx import OfflineRecognizer

        parts = WhisperParts.of(model)
        load = functools.partial(
            OfflineRecognizer.from_whisper,
            encoder=str(folder / "encoder.onnx"),
            decoder=str(folder / "decoder.onnx"),
            tokens=str(folder / "tokens.txt"),
            language=parts.language() or ("" if parts.tokenizer.is_multilingual else "en"),
            task=parts.tokenizer.task,
            num_threads=torch.get_num_threads(),
        )
        return _Sherpa(load, parts)

    def usage(self, folder: str, model: ExportModel) -> str:
        """See `Format`."""
        if model.module.task_name != "seq2seq":
            return _CTC_USAGE.format(folder=folder, limits=_limits(model.module.speech_encoder))
        parts = WhisperParts.of(model)
        language, task = parts.language(), parts.tokenizer.task
        options = "" if language is None else f'\n    language="{language}",\n    task="{task}",'
        return _WHISPER_USAGE.format(folder=folder, options=options, tail_s=parts.tail_s)


def _limits(encoder: SpeechEncoder) -> str:
    """What the usage of a CTC model says about the length of its input."""
    text = "" if encoder.max_s is None else f" It is\nup to {encoder.max_s:g} s long, more is an error."
    if encoder.window is not None:
        text += f" The graph appends {f'{encoder.tail_s:g} s of silence' if encoder.window == 'real' else 'silence'}."
    return text


def _write_whisper(parts: WhisperParts, folder: Path, quantization: str) -> None:
    mel, inputs = example_inputs(parts)
    encoder, decoder = EncoderGraph(parts), DecoderGraph(parts)
    _export(encoder, (mel,), folder / "encoder.onnx", ("mel",), ENCODER_OUTPUTS, AXES, metadata(parts), quantization)
    _export(decoder, inputs, folder / "decoder.onnx", DECODER_INPUTS, DECODER_OUTPUTS, AXES, {}, quantization)
    with written_whole(folder / "tokens.txt") as file:
        for i, text in enumerate(text_tokens(parts)):
            file.write(f"{base64.b64encode(text).decode()} {i}\n")


def _write_ctc(model: ExportModel, folder: Path, quantization: str) -> None:
    graph = CtcGraph(model)
    inputs = graph.example_inputs()
    facts = {"model_type": "ctc", "sample_rate": SAMPLE_RATE, "blank_id": 0, "vocab_size": len(graph.labels)}
    with traced(graph.encoder):
        _export(graph, inputs, folder / "model.onnx", CTC_INPUTS, CTC_OUTPUTS, CTC_AXES, facts, quantization)
    with written_whole(folder / "vocab.txt") as file:
        file.writelines(label_lines(graph.labels))


def _export(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: dict[str, dict[int, str]],
    facts: dict[str, object],
    quantization: str,
) -> None:
    """Write a graph with its metadata, with the weights of matrix products in int8 on request."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = {*input_names, *output_names}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The exporter that traces. The newer exporter needs a further package.
        torch.onnx.export(
            graph.eval(),
            inputs,
            str(path),
            opset_version=_OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={name: axes[name] for name in names if name in axes},
            dynamo=False,
        )
    if quantization == "int8":
        # onnxruntime warns that the graph was not optimized first, which makes no difference to matrix products.
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(str(path), str(path), op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
        finally:
            logging.disable(logging.NOTSET)
    written: Any = onnx.load(str(path))
    onnx.helper.set_model_props(written, {key: str(value) for key, value in facts.items()})
    large = written.ByteSize() > _MOST_BYTES
    for leftover in path.parent.iterdir() if large else ():
        if leftover.suffix not in (".onnx", ".txt", ".weights"):
            leftover.unlink()
    location = f"{path.stem}.weights" if large else None
    onnx.save(written, str(path), save_as_external_data=large, location=location)


class _Sherpa:
    """See `Runtime`. Silence is appended to the waveform, and the frames that sherpa-onnx leaves out at 30 s."""

    def __init__(self, load: Callable[..., Any], parts: WhisperParts) -> None:
        self._load, self._parts = load, parts

    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """See `Runtime`."""
        recognizer = self._load(tail_paddings=1 if real_length else _ENCODER_FRAMES - _SHERPA_FRAMES)
        for waveform_T in waveforms:
            samples = with_silence(waveform_T, self._parts.tail_s if real_length else None)
            stream = recognizer.create_stream()
            stream.accept_waveform(SAMPLE_RATE, samples[: _SHERPA_FRAMES * HOP])
            recognizer.decode_stream(stream)
            yield " ".join(stream.result.text.split())

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """See `Runtime`. sherpa-onnx times no words of Whisper."""
        return None


class _OnnxRuntime:
    """See `Runtime`. CTC models encode the utterance only, so ``real_length`` makes no difference."""

    def __init__(self, folder: Path, model: ExportModel) -> None:
        from onnxruntime import InferenceSession

        self._session = InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self._tokenizer = model.module.tokenizer

    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """See `Runtime`."""
        for waveform_T in waveforms:
            yield ctc_texts(self._session, [waveform_T], self._tokenizer)[0]

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """See `Runtime`. onnxruntime gives log-probabilities."""
        return None
