"""The ``transformers`` format: a folder that transformers loads without this package."""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ssl_asr.console import silent
from ssl_asr.errors import UserError
from ssl_asr.export.base import ExportModel, Runtime, TimedWord
from ssl_asr.export.tokenizers import tokenizer_refusal, write_json, write_tokenizer
from ssl_asr.types import SAMPLE_RATE

if TYPE_CHECKING:
    from transformers.feature_extraction_utils import FeatureExtractionMixin

_USAGE = """
```python
import soundfile
from transformers import pipeline

transcribe = pipeline("automatic-speech-recognition", model="{folder}")
audio, rate = soundfile.read("recording.wav", dtype="float32")
print(transcribe({{"raw": audio, "sampling_rate": rate}}{options})["text"])
```

Where the program `ffmpeg` is installed, the pipeline also takes the names of files.
"""
_GREEDY = ', generate_kwargs={"num_beams": 1}'
_REAL = """
transformers pads every input to 30 s. ssl_asr reads the same folder, and encodes only the speech and {tail_s:g} s of
silence:

```python
import ssl_asr

model = ssl_asr.load("{folder}", window="real", tail_s={tail_s:g})
print(model.transcribe("recording.wav")[0].text)
```
"""


class Transformers:
    """``config.json``, ``model.safetensors``, tokenizer and feature extractor. See `ssl_asr.export.base.Format`."""

    name: ClassVar[str] = "transformers"
    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    quantizations: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")
    real_length: ClassVar[bool] = False

    def refusal(self, model: ExportModel) -> UserError | None:
        """A model or tokenizer without a class in transformers."""
        return model.reason or tokenizer_refusal(model.module.tokenizer)

    def write(self, model: ExportModel, folder: Path, *, quantization: str) -> None:
        """Write all files that the ``Auto`` classes of transformers read."""
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

        net: Any = model.net
        if quantization != "float32":
            net = copy.deepcopy(net).to(getattr(torch, quantization))
        with silent():
            net.save_pretrained(folder)
        processor = PROCESSOR_MAPPING_NAMES.get(net.config.model_type, "Wav2Vec2Processor")
        extractor: FeatureExtractionMixin = model.module.speech_encoder.feature_extractor()
        settings = json.loads(extractor.to_json_string())
        write_json(folder / "preprocessor_config.json", {**settings, "processor_class": processor})
        write_tokenizer(model.module.tokenizer, folder, processor=processor)

    def runtime(self, folder: Path, model: ExportModel) -> Runtime:
        """Load the folder by the classes of transformers, in float32 whatever the stored type."""
        kind = _Whisper if _has_decoder(model) else _Ctc
        with silent():
            return kind(folder)

    def usage(self, folder: str, model: ExportModel) -> str:
        """How to run the folder in transformers, and how to run it with real lengths in ssl_asr."""
        options = _GREEDY if _has_decoder(model) else ""
        text = _USAGE.format(folder=folder, options=options)
        if model.window == "real":
            text += _REAL.format(folder=folder, tail_s=model.tail_s)
        return text.strip()


def _has_decoder(model: ExportModel) -> bool:
    net: Any = model.net
    return bool(net.config.is_encoder_decoder)


class _Ctc:
    """``AutoModelForCTC`` and ``AutoProcessor``, one utterance at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCTC, AutoProcessor

        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._model: Any = AutoModelForCTC.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """See `Runtime`."""
        for waveform_T in waveforms:
            yield str(self._processor.tokenizer.decode(self._labels(waveform_T)))

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """See `Runtime`. Only tokenizers of characters time words."""
        if type(self._processor.tokenizer).__name__ != "Wav2Vec2CTCTokenizer":
            return None
        return (self._timed(waveform_T) for waveform_T in waveforms)

    def _labels(self, waveform_T: Tensor) -> list[int]:
        """The best label of each frame."""
        inputs = self._processor(waveform_T.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        labels: list[int] = self._model(**inputs).logits[0].argmax(-1).tolist()
        return labels

    def _timed(self, waveform_T: Tensor) -> list[TimedWord]:
        found = self._processor.tokenizer.decode(self._labels(waveform_T), output_word_offsets=True).word_offsets
        frame_s = self._model.config.inputs_to_logits_ratio / SAMPLE_RATE
        return [TimedWord(word["word"], float(word["start_offset"]) * frame_s) for word in found]


class _Whisper:
    """``WhisperForConditionalGeneration`` with greedy search, one utterance at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, WhisperForConditionalGeneration

        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """See `Runtime`."""
        options = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt", "return_attention_mask": True}
        for waveform_T in waveforms:
            inputs = self._processor(waveform_T.numpy(), **options)
            with silent():
                ids = self._model.generate(**inputs, num_beams=1, do_sample=False)
            yield str(self._processor.batch_decode(ids, skip_special_tokens=True)[0])

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """See `Runtime`. The pipeline of transformers, which decodes with timestamps to time words."""
        from transformers import AutomaticSpeechRecognitionPipeline

        with silent():
            pipeline = AutomaticSpeechRecognitionPipeline(
                self._model,
                feature_extractor=self._processor.feature_extractor,
                tokenizer=self._processor.tokenizer,
            )
        return (_timed(pipeline, waveform_T) for waveform_T in waveforms)


def _timed(pipeline: Any, waveform_T: Tensor) -> list[TimedWord]:
    with silent():
        found = pipeline(waveform_T.numpy(), return_timestamps="word", generate_kwargs={"num_beams": 1})
    return [TimedWord(chunk["text"].strip(), float(chunk["timestamp"][0])) for chunk in found["chunks"]]
