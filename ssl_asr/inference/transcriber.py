"""The models of this package in a few lines of Python.

Example:
    >>> import ssl_asr
    >>> model = ssl_asr.load("outputs/mine")  # doctest: +SKIP
    >>> model.transcribe(["a.wav", "b.flac"])[0].text  # doctest: +SKIP
    'hello'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_asr.build.assembly import InferenceOptions, ask_for_times, decoder_node, load_model
from ssl_asr.data.audio import audio_duration_s, read_waveform, resample
from ssl_asr.data.dataset import collate
from ssl_asr.decoding.alignment import Measure
from ssl_asr.errors import AudioError
from ssl_asr.inference.long_recordings import LongForm, batches, hear_long, too_long
from ssl_asr.models.encoder import Window
from ssl_asr.types import SAMPLE_RATE, Example, Hertz, Hypothesis, Seconds, Utterance

Audio = str | Path | np.ndarray | torch.Tensor


class Transcriber:
    """A model that is ready to transcribe; `ssl_asr.load` makes one.

    ``module`` is the LightningModule behind it.

    Args:
        module: of `ssl_asr.build.assembly.load_model`.
        device: where it runs.
    """

    def __init__(self, module: Any, *, device: torch.device) -> None:
        self.module = module.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        *,
        sample_rate: Hertz = SAMPLE_RATE,
        language: str | None = None,
        max_batch_s: Seconds = 120.0,
        chunk_s: Seconds = 30.0,
        stride_s: Seconds = 4.0,
        vad: bool = False,
    ) -> list[Hypothesis]:
        """What recordings say, in their order, whatever their lengths.

        Args:
            audio: files, or samples: mono, shape ``(samples,)``, floats from -1 to 1.
            sample_rate: of samples that are given as such.
            language: of a multilingual Whisper; None hears it.
            max_batch_s: seconds of audio in a batch, padding included.
            chunk_s, stride_s, vad: see `ssl_asr.inference.long_recordings.LongForm`.

        Raises:
            AudioError: a file cannot be read, or samples are no mono floats.
        """
        given = [audio] if isinstance(audio, str | Path | np.ndarray | torch.Tensor) else list(audio)
        parts = LongForm(chunk_s=chunk_s, stride_s=stride_s, batch_s=max_batch_s, vad=vad)
        limit = too_long(self.module, parts)
        results: dict[int, Hypothesis] = {}
        short: list[tuple[int, Example]] = []
        for place, one in enumerate(given):
            utterance, samples_T = _read(one, place, sample_rate, language)
            if utterance.duration > limit:
                results[place] = hear_long(self.module, utterance, parts, samples_T)
            else:
                samples_T = read_waveform(utterance) if samples_T is None else samples_T
                short.append((place, Example(utterance, samples_T, [])))
        lengths_s = [len(example.waveform_T) / SAMPLE_RATE for _, example in short]
        for places in batches(self.module, lengths_s, max_batch_s):
            own = [short[place] for place in places]
            heard = self.module.transcribe(collate([example for _, example in own]).to(self.device))
            results |= {place: one for (place, _), one in zip(own, heard, strict=True)}
        return [results[place] for place in range(len(given))]


def _read(audio: Audio, place: int, sample_rate: Hertz, language: str | None) -> tuple[Utterance, torch.Tensor | None]:
    """The recording as an utterance, and its samples where they were given."""
    if isinstance(audio, str | Path):
        return Utterance(str(audio), str(audio), audio_duration_s(Path(audio)), lang=language), None
    samples = torch.as_tensor(audio)
    if samples.ndim != 1 or not samples.is_floating_point() or not len(samples) or not samples.isfinite().all():
        what = f"samples of shape {tuple(samples.shape)} and type {samples.dtype}, or not finite"
        raise AudioError(f"audio {place}", what, "mono floats from -1 to 1, shape (samples,)")
    samples_T = resample(samples.float(), sample_rate)
    return Utterance(str(place), "", len(samples_T) / SAMPLE_RATE, lang=language), samples_T


def load(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    decoder: str | Path | None = None,
    decoder_options: dict[str, Any] | None = None,
    times: Measure | None = None,
    window: Window | None = None,
    tail_s: Seconds | None = None,
    language: str | None = None,
    task: str = "transcribe",
) -> Transcriber:
    """A model from a run directory, a checkpoint, a backbone option or a pretrained name.

    Args:
        model: such a name.
        device: where it runs; None takes an accelerator where there is one.
        decoder: an option of ``conf/decoder`` such as ``ctc_beam``, or a file as ``tune_decoding`` writes it; None
            takes the model's own.
        decoder_options: settings of that option.
        times: have words timed, and their confidence measured so, by a CTC or joint model.
        window, tail_s: of Whisper's encoder, see `ssl_asr.models.whisper.WhisperBackbone`.
        language, task: of a multilingual Whisper.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: the decoder, or what is asked of it, does not go with the model.
    """
    options = InferenceOptions(
        window=window,
        tail_s=tail_s,
        language=language,
        whisper_task=task,
        decoder=None if decoder is None else decoder_node(str(decoder), decoder_options or {}),
    )
    module = load_model(str(model), options, lambda _: None)
    if times is not None:
        ask_for_times(module, times, needed=True)
    found = torch.device(device) if device is not None else torch.accelerator.current_accelerator(check_available=True)
    return Transcriber(module, device=found or torch.device("cpu"))
