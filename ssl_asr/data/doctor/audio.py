"""Decode the audio of utterances, and say what is wrong with it."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ssl_asr.console import tracked
from ssl_asr.data.audio import DURATION_TOLERANCE_S, check_header, read_waveform
from ssl_asr.data.doctor.findings import Finding
from ssl_asr.data.identity import file_key
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.signal import Signal
from ssl_asr.errors import AudioError
from ssl_asr.types import SAMPLE_RATE, Downmix, Hertz, Seconds, Utterance

# Utterances that are decoded at one time, so that findings of millions of lines do not wait in memory.
_PART = 4096
_LOWEST_DB = -120.0


@dataclass(frozen=True, slots=True)
class Heard:
    """An utterance after its audio was decoded.

    Attributes:
        split: Name of the manifest.
        utterance: The line.
        findings: What is wrong with its audio.
        rate: Sample rate of the file in Hz; 0 if it cannot be opened.
        channels: Channels of the file; 0 if it cannot be opened.
        seconds: Decoded seconds; 0 if it cannot be decoded.
        level_db: Root mean square in dB of full scale, from -120; None if it cannot be decoded.
        digest: Digest of the decoded samples (16 kHz, mono), equal for equal samples; "" if it cannot be decoded.
    """

    split: str
    utterance: Utterance
    findings: list[Finding] = field(default_factory=list)
    rate: Hertz = 0
    channels: int = 0
    seconds: Seconds = 0.0
    level_db: float | None = None
    digest: str = ""


def hear(
    manifests: Mapping[str, Manifest], *, downmix: Downmix = "mean", threads: int, progress: bool
) -> Iterator[Heard]:
    """Decode every utterance, several at one time.

    Args:
        manifests: Manifests by name.
        downmix: What several channels become.
        threads: Number of threads. Decoding and filters run outside Python's lock.
        progress: Whether to show a progress bar for each manifest.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for name, manifest in manifests.items():
            lines = Counter(file_key(utterance.audio_filepath) for utterance in manifest)
            tasks = ((name, utterance, downmix, lines) for utterance in manifest)
            heard = (one for part in _parts(tasks) for one in pool.map(lambda task: _hear(*task), part))
            yield from tracked(heard, f"decode {name}", total=len(manifest), shown=progress)


def _parts(tasks: "Iterable[tuple[str, Utterance, Downmix, Counter[str]]]") -> "Iterator[list[_Task]]":
    part: list[_Task] = []
    for task in tasks:
        part.append(task)
        if len(part) == _PART:
            yield part
            part = []
    yield part


_Task = tuple[str, Utterance, Downmix, Counter[str]]


def _hear(split: str, utterance: Utterance, downmix: Downmix, lines: Counter[str]) -> Heard:
    signals: list[Signal] = []
    try:
        header = check_header(utterance)
        waveform_T = read_waveform(utterance, downmix=downmix, signals=signals).numpy()
    except AudioError as error:
        return Heard(split, utterance, [Finding.of(split, utterance, error.reason, str(error))])
    found = [(name, f"{utterance.audio_filepath}: {_level(signals[0])}") for name in signals[0].findings()]
    if header.rate != SAMPLE_RATE:
        found.append(("resampled", f"{header.rate:,} Hz"))
    if header.channels > 1 and utterance.channel is None:
        found.append(("several_channels", f"{header.channels} channels"))
    left_s = header.length_s - utterance.offset - utterance.duration
    # A file with several lines is a recording with segments.
    if lines[file_key(utterance.audio_filepath)] == 1 and utterance.offset == 0 and left_s > DURATION_TOLERANCE_S:
        what = f"{utterance.audio_filepath} has {header.length_s:.2f} s, and 'duration' is {utterance.duration:.2f} s"
        found.append(("longer_than_manifest", what))
    power = float(np.square(waveform_T, dtype=np.float64).mean())
    return Heard(
        split,
        utterance,
        [Finding.of(split, utterance, name, detail) for name, detail in found],
        header.rate,
        header.channels,
        len(waveform_T) / SAMPLE_RATE,
        max(_LOWEST_DB, 10 * math.log10(power)) if power > 0 else _LOWEST_DB,
        hashlib.blake2b(np.ascontiguousarray(waveform_T).tobytes(), digest_size=16).hexdigest(),
    )


def _level(signal: Signal) -> str:
    peak_db = 20 * math.log10(signal.peak) if signal.peak > 0 else -math.inf
    return f"peak {peak_db:.1f} dB, {100 * signal.clipped / max(1, signal.samples):.1f} % clipped"
