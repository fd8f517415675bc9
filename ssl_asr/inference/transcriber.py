"""Transcription in Python.

Example:
    >>> import ssl_asr
    >>> model = ssl_asr.load("outputs/mine")  # doctest: +SKIP
    >>> model.transcribe(["a.wav", "b.flac"])[0].text  # doctest: +SKIP
    'hello'
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ssl_asr.config.nodes import option_node
from ssl_asr.config.options import build_option
from ssl_asr.data.audio import audio_duration_s, read_waveform, waveform_of
from ssl_asr.data.dataset import collate
from ssl_asr.data.languages import given_language
from ssl_asr.data.signal import Signal, notices, warn_of
from ssl_asr.decoding.alignment import Measure
from ssl_asr.inference.long_form import LongForm, check_detection
from ssl_asr.inference.long_recordings import transcribe_long
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.inference.precision import weights_dtype
from ssl_asr.inference.recognizer import Recognizer
from ssl_asr.inference.recording import Recording
from ssl_asr.inference.together import Job, run_together
from ssl_asr.inference.voice import batches, transcribe_short
from ssl_asr.models.encoder import Window
from ssl_asr.training.module import TEXT_ONLY, ASRModule, TranscribeOptions
from ssl_asr.types import (
    SAMPLE_RATE,
    Downmix,
    Example,
    Hertz,
    Hypothesis,
    RecognitionPrecision,
    Seconds,
    Utterance,
)

Audio = str | Path | np.ndarray | torch.Tensor
"""A file, or samples of shape ``(samples,)``, ``(channels, samples)`` or ``(samples, channels)``: floats from -1 to 1,
or integers, which are scaled by their range."""


class Transcriber:
    """A model that is ready to transcribe. `ssl_asr.load` makes one.

    Args:
        module: The model; see `ssl_asr.inference.model.load_model`.
        device: Where it runs.
        options: What is returned besides text.
    """

    def __init__(self, module: ASRModule, *, device: torch.device, options: TranscribeOptions = TEXT_ONLY) -> None:
        self.module = module.eval().to(device)
        self.device, self.options = device, options

    @torch.inference_mode()
    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        *,
        sample_rate: Hertz = SAMPLE_RATE,
        language: str | None = None,
        max_batch_s: Seconds | None = None,
        chunk_s: Seconds = 30.0,
        stride_s: Seconds = 4.0,
        vad: bool | None = None,
        detect_every_min: float | None = None,
        downmix: Downmix | None = None,
    ) -> list[Hypothesis]:
        """Transcribe recordings of any length. The result has the order of the input.

        Findings in the audio, such as silence, are issued as warnings. Words are empty unless `load` gets ``times``.

        Args:
            audio: Files or samples.
            sample_rate: Sample rate of samples in memory. Not used for files.
            language: Language of a multilingual Whisper, as a code of any form or a name; None detects it.
            max_batch_s: Seconds that the encoder computes for a batch. None for its default, see `LongForm`.
            chunk_s, stride_s: Windows of long recordings; see `LongForm`.
            vad: Voice activity detection; see `LongForm`. By default, recordings without speech have an empty text.
            detect_every_min: Minutes after which the language of a long recording is detected again; None for once.
            downmix: Several channels: ``mean``, ``first`` or ``refuse``. None takes the value of training, or ``mean``.

        Raises:
            AudioError: A file or an array cannot be read; see `ssl_asr.data.audio.waveform_of` for arrays.
            ConfigError: ``detect_every_min`` does not go with the model or the other options.
        """
        given = [audio] if isinstance(audio, str | Path | np.ndarray | torch.Tensor) else list(audio)
        every_s = None if detect_every_min is None else 60 * detect_every_min
        long_form = LongForm(chunk_s=chunk_s, stride_s=stride_s, batch_s=max_batch_s, vad=vad, detect_every_s=every_s)
        check_detection(self.module, long_form, language)
        limit = self.module.longest_pass_s(chunk_s)
        downmix = downmix or self.module.downmix
        results: dict[int, Hypothesis] = {}
        short: list[tuple[int, Example]] = []
        long: list[tuple[int, Recording]] = []
        heard: list[tuple[str, list[Signal]]] = []
        for place, one in enumerate(given):
            signals: list[Signal] = []
            utterance, samples_T = _read(one, place, sample_rate, given_language(language), downmix, signals)
            heard.append((utterance.id, signals))
            if utterance.duration > limit:
                long.append((place, Recording(utterance, samples_T, downmix=downmix, signals=signals)))
                continue
            if samples_T is None:
                samples_T = read_waveform(utterance, downmix=downmix, signals=signals)
            short.append((place, Example(utterance, samples_T, [])))
        jobs = [Job(partial(self._transcribe_long, one, long_form), one.utterance.duration) for _, one in long]
        for row, hypothesis in run_together(self.module, jobs, max_batch_s=max_batch_s):
            results[long[row][0]] = hypothesis
        results |= self._transcribe_short(short, long_form)
        warn_of([notice for name, signals in heard for notice in notices(name, signals)])
        return [results[place] for place in range(len(given))]

    def _transcribe_long(
        self, recording: Recording, long_form: LongForm, model: Recognizer, check: Callable[[], None]
    ) -> Hypothesis:
        return transcribe_long(model, recording.checked(check), long_form, self.options)

    def _transcribe_short(self, examples: Sequence[tuple[int, Example]], long_form: LongForm) -> dict[int, Hypothesis]:
        """Hypotheses of recordings that fit into one pass, by their place."""
        results: dict[int, Hypothesis] = {}
        lengths_s = [len(example.waveform_T) / SAMPLE_RATE for _, example in examples]
        for rows in batches(self.module.speech_encoder, lengths_s, long_form.batch_s):
            own = [examples[row] for row in rows]
            batch = collate([example for _, example in own]).to(self.device)
            hypotheses = transcribe_short(self.module, batch, long_form, self.options)
            results |= {place: hypothesis for (place, _), hypothesis in zip(own, hypotheses, strict=True)}
        return results


def _read(
    audio: Audio, place: int, sample_rate: Hertz, language: str | None, downmix: Downmix, signals: list[Signal]
) -> tuple[Utterance, torch.Tensor | None]:
    """The recording as an utterance, and its samples if they were given."""
    if isinstance(audio, str | Path):
        return Utterance(str(audio), str(audio), audio_duration_s(Path(audio)), lang=language), None
    samples_T = waveform_of(audio, sample_rate, name=f"audio {place}", downmix=downmix, signals=signals)
    return Utterance(str(place), "", len(samples_T) / SAMPLE_RATE, lang=language), samples_T


def load(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: RecognitionPrecision = "auto",
    decoder: str | Path | None = None,
    decoder_options: dict[str, Any] | None = None,
    times: Measure | None = None,
    window: Window | None = None,
    tail_s: Seconds | None = None,
    language: str | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    extensions: Sequence[str] = (),
) -> Transcriber:
    """A model from a run directory, a checkpoint, a backbone option or a pretrained name.

    Args:
        model: Run directory, checkpoint file, backbone option, or name of a pretrained model.
        device: Where it runs; None takes an accelerator if there is one.
        precision: ``bf16-true`` and ``16-true`` hold the weights in 16 bits, ``32-true`` in float32. auto is bf16-true
            on an NVIDIA GPU (16-true if the GPU has no bfloat16) and 32-true on other devices.
        decoder: A ``decoder`` option such as ``ctc_beam``, or a file that ``tune_decoding`` wrote; None takes the
            model's own.
        decoder_options: Settings of the decoder option.
        times: Measure of confidence of words, such as ``max_prob``. With None, `Hypothesis.words` is empty.
        window, tail_s: Window of Whisper's encoder; see `ssl_asr.models.whisper.WhisperBackbone`.
        language, task: Language and task of a multilingual Whisper.
        extensions: Packages besides this one whose classes the model or the decoder may use.

    Raises:
        CheckpointError: There is no such model.
        ConfigError: The decoder or an option does not go with the model.
    """
    found = torch.device(device) if device is not None else torch.accelerator.current_accelerator(check_available=True)
    place = found or torch.device("cpu")
    node = None if decoder is None else option_node("decoder", str(decoder), decoder_options or {})
    options = InferenceOptions(
        window=window,
        tail_s=tail_s,
        language=language,
        whisper_task=task,
        decoder=None if node is None else build_option(node, "decoder", extensions=extensions),
        weights=weights_dtype(precision, place),
        extensions=tuple(extensions),
    )
    module = load_model(str(model), options)
    transcribe = TranscribeOptions()
    if times is not None:
        transcribe = replace(transcribe, confidence=module.confidence_measure(times, required=True))
    return Transcriber(module, device=place, options=transcribe)
