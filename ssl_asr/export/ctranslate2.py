"""CTranslate2's format, for faster-whisper and whisperX.

CTranslate2's own loader maps the weights. It reads them from the model in memory::

    model.bin                  weights, in the type of the quantization
    config.json                suppressed tokens, languages, alignment heads for word times
    vocabulary.json            spelling of each id
    tokenizer.json             for faster-whisper
    preprocessor_config.json   number of mel bands, for faster-whisper
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ssl_asr.errors import UserError
from ssl_asr.export.base import ExportModel, Runtime, TimedWord
from ssl_asr.export.whisper import WhisperParts, whisper_refusal, with_silence
from ssl_asr.models.whisper import HOP, N_FFT, WINDOW_S
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import SAMPLE_RATE

_PREPROCESSOR = {
    "chunk_length": int(WINDOW_S),
    "feature_extractor_type": "WhisperFeatureExtractor",
    "hop_length": HOP,
    "n_fft": N_FFT,
    "sampling_rate": SAMPLE_RATE,
}

_USAGE = """\
faster-whisper, which reads files of any length:

```python
import numpy as np
from faster_whisper import WhisperModel, decode_audio

model = WhisperModel("{folder}", compute_type="float32")  # on a GPU: "float16"
audio = decode_audio("speech.wav")
audio = np.pad(audio, (0, max(0, 480000 - len(audio))))
segments, info = model.transcribe(audio{options})
print("".join(segment.text for segment in segments))
```

faster-whisper fills the spectrogram of the last window with zeros, and training filled it with silence. So the code
appends silence to recordings of less than 30 s.

To encode an utterance and {tail_s:g} s of silence instead of 30 s:

```python
import numpy as np
from faster_whisper import WhisperModel, decode_audio
from faster_whisper.transcribe import get_ctranslate2_storage

model = WhisperModel("{folder}", compute_type="float32")
audio = np.pad(decode_audio("speech.wav"), (0, {tail}))[:480000]
features = model.feature_extractor(audio, padding=0)
states = model.encode(features)
[result] = model.model.generate(states, [{prompt}], beam_size=1)
print(model.hf_tokenizer.decode(result.sequences_ids[0]))
```
"""


class CTranslate2:
    """Whisper in CTranslate2's format. See `Format`."""

    name: ClassVar[str] = "ctranslate2"
    extra: ClassVar[str | None] = "ctranslate2"
    packages: ClassVar[tuple[str, ...]] = ("ctranslate2", "faster_whisper")
    quantizations: ClassVar[tuple[str, ...]] = (
        "float16",
        "float32",
        "bfloat16",
        "int8",
        "int8_float32",
        "int8_float16",
        "int8_bfloat16",
        "int16",
    )
    real_length: ClassVar[bool] = True

    def refusal(self, model: ExportModel) -> UserError | None:
        """Models other than Whisper with its decoder."""
        return whisper_refusal(model, self.name)

    def write(self, model: ExportModel, folder: Path, *, quantization: str) -> None:
        """See `Format`."""
        from ctranslate2.converters.transformers import WhisperLoader

        parts = WhisperParts.of(model)
        # The integer types are computed in place, in the memory of the weights.
        spec = WhisperLoader().get_model_spec(copy.deepcopy(parts.net))
        always, first = parts.suppressed()
        settings = {
            "suppress_ids": always,
            "suppress_ids_begin": first,
            "alignment_heads": parts.alignment_heads(),
            "lang_ids": sorted(parts.tokenizer.languages.values()),
        }
        for key, value in settings.items():
            setattr(spec.config, key, value)
        spec.register_vocabulary(parts.tokens())
        spec.validate()
        spec.optimize(quantization=quantization)
        spec.save(str(folder))
        preprocessor = to_json({**_PREPROCESSOR, "feature_size": parts.n_mels}, indent=2)
        for name, text in (("tokenizer.json", parts.tokenizer_json), ("preprocessor_config.json", preprocessor)):
            with written_whole(folder / name) as file:
                file.write(text)

    def runtime(self, folder: Path, model: ExportModel) -> Runtime:
        """The files in faster-whisper, on the CPU. See `Format`."""
        import ctranslate2
        from faster_whisper import WhisperModel

        # They report each file, and that the CPU computes in float32.
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        ctranslate2.set_log_level(logging.ERROR)
        return _FasterWhisper(WhisperModel(str(folder), device="cpu"), WhisperParts.of(model))

    def usage(self, folder: str, model: ExportModel) -> str:
        """See `Format`."""
        parts = WhisperParts.of(model)
        language = parts.language()
        options = "" if language is None else f', language="{language}", task="{parts.tokenizer.task}"'
        tail = int(parts.tail_s * SAMPLE_RATE)
        prompt = parts.prompt("en")
        return _USAGE.format(folder=folder, options=options, tail_s=parts.tail_s, tail=tail, prompt=prompt)


class _FasterWhisper:
    """See `Runtime`. At 30 s, faster-whisper runs the files. With real lengths, the model inside faster-whisper."""

    def __init__(self, whisper: Any, parts: WhisperParts) -> None:
        self._whisper, self._parts = whisper, parts
        self._prompts: dict[str | None, list[int]] = {}

    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """See `Runtime`."""
        read = self._real if real_length else self._whole
        return (read(waveform_T) for waveform_T in waveforms)

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """See `Runtime`. faster-whisper goes on after the last word, and may write more words in the silence."""
        return (
            [
                TimedWord(word.word.strip(), float(word.start))
                for segment in self._segments(one, True)
                for word in segment.words
            ]
            for one in waveforms
        )

    def _whole(self, waveform_T: Tensor) -> str:
        return "".join(segment.text for segment in self._segments(waveform_T, False)).strip()

    def _segments(self, waveform_T: Tensor, word_timestamps: bool) -> Iterator[Any]:
        parts = self._parts
        segments, _ = self._whisper.transcribe(
            with_silence(waveform_T, None),
            language=parts.language(),
            task=parts.tokenizer.task,
            beam_size=1,
            temperature=0.0,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            suppress_tokens=parts.suppressed()[0],
            without_timestamps=True,
            word_timestamps=word_timestamps,
        )
        yield from segments

    def _real(self, waveform_T: Tensor) -> str:
        features = self._whisper.feature_extractor(with_silence(waveform_T, self._parts.tail_s), padding=0)
        states = self._whisper.encode(features.astype(np.float32))
        detected = None
        if self._parts.tokenizer.is_multilingual and self._parts.tokenizer.language is None:
            [ranked] = self._whisper.model.detect_language(states)
            detected = ranked[0][0][2:-2]
        prompt = self._prompts.setdefault(detected, self._parts.prompt(detected))
        [result] = self._whisper.model.generate(states, [prompt], beam_size=1)
        return self._parts.tokenizer.decode(result.sequences_ids[0])
