"""Audio of utterances in a page: embedded as MP3 up to a total size, or linked."""

import base64
import html
import io
import os
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import soundfile
from torch import Tensor

from ssl_asr.data.audio import read_waveform
from ssl_asr.errors import AudioError
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import SAMPLE_RATE

AudioMode = Literal["embed", "link", "none"]
_MB = 1_000_000


class Sounds:
    """Players of utterances, and how much of them is embedded.

    Args:
        mode: ``embed`` writes the audio into the page, ``link`` refers to its file, ``none`` leaves it out.
        limit_mb: Largest size of all embedded audio together, in MB.
        page: File of the page, which links are relative to.

    Attributes:
        left_out: Number of utterances whose audio was left out, by reason.
    """

    def __init__(self, mode: AudioMode, limit_mb: float, page: Path) -> None:
        self._mode, self._limit, self._folder = mode, limit_mb * _MB, page.resolve().parent
        self._used = 0
        self._made: dict[tuple[object, ...], str] = {}
        self.left_out: dict[str, int] = {}

    def player(self, one: Prediction) -> str:
        """HTML of a player, or of the reason why there is none. "" for ``none``."""
        if self._mode == "none":
            return ""
        if self._mode == "link":
            # Browsers play a part of a file by its times.
            part = f"#t={one.offset:g},{one.offset + one.duration:g}" if one.duration > 0 else ""
            return _player(quote(_relative(Path(one.audio_filepath), self._folder)) + part)
        key = one.audio_filepath, one.offset, one.duration, one.channel
        if key not in self._made:
            self._made[key] = self._embedded(one)
        return self._made[key]

    def _embedded(self, one: Prediction) -> str:
        try:
            data = base64.b64encode(encoded(read_waveform(one.utterance()))).decode()
        except AudioError as error:
            return self._without("the file cannot be read", str(error))
        if self._used + len(data) > self._limit:
            return self._without("the limit audio_mb is reached", f"{len(data) / _MB:.2f} MB more than audio_mb allows")
        self._used += len(data)
        return _player(f"data:audio/mpeg;base64,{data}")

    def _without(self, reason: str, detail: str) -> str:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        return f'<p class="note">No audio: {html.escape(detail)}</p>'

    def summary(self) -> str:
        """What the page has of the audio, in one sentence."""
        if self._mode != "embed":
            return {"link": "Audio is linked: the players work where the files are.", "none": "Audio is left out."}[
                self._mode
            ]
        embedded = len(self._made) - sum(self.left_out.values())
        lacking = [f"{count} left out because {reason}" for reason, count in self.left_out.items()]
        size = f"{self._used / _MB:.1f} MB of audio of {embedded} utterances"
        return f"The page holds {'; '.join([size, *lacking])}."


def encoded(waveform_T: Tensor) -> bytes:
    """A waveform, float32 at 16 kHz, as MP3."""
    file = io.BytesIO()
    samples = waveform_T.clamp(-1, 1).numpy()
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.7}
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", **options)
    return file.getvalue()


def _player(source: str) -> str:
    return f'<audio controls preload="none" src="{html.escape(source)}"></audio>'


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder)
