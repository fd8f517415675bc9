"""The check of samples that every path through audio runs, and the mix of several channels to one.

===================  ===============================================  ==============================================
finding              how it is found                                  what is done
===================  ===============================================  ==============================================
non_finite           a sample is NaN or infinite                      AudioError
out_of_range         a float file has samples above 2^31              AudioError
integers_as_floats   a float file has samples above 8, or only        divided by 2^15, 2^23 or 2^31, the first that
                     integers, some of them not -1, 0 or 1            is not below the peak of the file; a notice
over_range           the peak is above 1.25, but not above 8          kept; a notice
silent               no sample is above -70 dB                        kept; a notice
clipped              over 1 % of the samples are above 1 (with no     kept; a notice
                     peak above 1.25), or in a run of three or more
                     at the positive or negative peak, see `at_peaks`
dc_offset            the mean of the samples is above 0.05            kept; a notice
opposite_phase       channels cancel when mixed, see `cancels`        the first channel, or the loudest if the first
                                                                      has less than half its power; a notice
damaged              packets of the file cannot be decoded            left out; a notice. AudioError if over 10 %
===================  ===============================================  ==============================================

A recording that is read in parts gets one finding for the whole: `Signal` objects of its parts are added.
"""

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssl_asr.types import Downmix, Hertz, Notice, Samples

_INTEGER_PEAK, _OVER_PEAK, _SILENT_PEAK = 8.0, 1.25, 10 ** (-70 / 20)
_CLIPPED_SHARE, _DC = 0.01, 0.05
# Distance of a peak from the mean, as a share of the distance of the other one, below which it is no peak of sound.
_FAINT = 0.25
_SCALES = (2.0**15, 2.0**23, 2.0**31)
# Power of a mix, as a share of the mix of channels that have nothing in common. Below it, the channels cancel.
_CANCELLED = 0.19
# Share of the power of a recording in seconds where the channels cancel.
_CANCELLED_SHARE = 0.1

_SAID = {
    "integers_as_floats": "float samples with the values of integers were scaled to [-1, 1]",
    "over_range": "samples are above full scale. Check how the audio was exported",
    "silent": "the audio is silent (no sample above -70 dB), and was used all the same."
    " `ssl-asr check` leaves it out of training manifests",
    "clipped": "more than 1 % of the samples are clipped. Record at a lower level",
    "dc_offset": "the samples have a constant offset of more than 5 % of full scale",
    "opposite_phase": "the channels have opposite phase and cancel when mixed, so that one channel was used instead."
    " Set downmix=first, or 'channel' in the manifest",
    "damaged": "some packets could not be decoded and were left out. Get the audio again",
    "cut_off": "the file ends before its header says, and the rest is missing. Get the audio again",
}


@dataclass(frozen=True, slots=True)
class Signal:
    """What the check found in samples. Signals of the parts of a recording are added.

    Attributes:
        samples: Number of samples.
        peak: Largest absolute value.
        total: Sum of the samples.
        clipped: Number of clipped samples.
        scaled: Whether integers were scaled.
        cancelled: Whether channels cancelled.
        lost: Packets that could not be decoded.
        cut: Whether the file ends before its header says.
    """

    samples: Samples = 0
    peak: float = 0.0
    total: float = 0.0
    clipped: Samples = 0
    scaled: bool = False
    cancelled: bool = False
    lost: int = 0
    cut: bool = False

    def __add__(self, other: "Signal") -> "Signal":
        return Signal(
            self.samples + other.samples,
            max(self.peak, other.peak),
            self.total + other.total,
            self.clipped + other.clipped,
            self.scaled or other.scaled,
            self.cancelled or other.cancelled,
            max(self.lost, other.lost),
            self.cut or other.cut,
        )

    def findings(self) -> list[str]:
        """Names of the findings that the user should know."""
        n = max(1, self.samples)
        found = {
            "integers_as_floats": self.scaled,
            "over_range": self.peak > _OVER_PEAK,
            "silent": self.samples > 0 and self.peak < _SILENT_PEAK,
            "clipped": self.clipped / n > _CLIPPED_SHARE,
            "dc_offset": abs(self.total) / n > _DC,
            "opposite_phase": self.cancelled,
            "damaged": self.lost > 0,
            "cut_off": self.cut,
        }
        return [name for name, is_found in found.items() if is_found]


def notices(utterance_id: str, signals: Sequence[Signal]) -> tuple[Notice, ...]:
    """Notices of an utterance, whose parts have these signals."""
    return tuple(Notice(utterance_id, finding) for finding in sum(signals, Signal()).findings())


def said_of(notice: Notice) -> str:
    """What was found, without a remedy.

    Example:
        >>> said_of(Notice("a", "cut_off"))
        'the file ends before its header says, and the rest is missing'
    """
    return _SAID[notice.finding].partition(". ")[0]


def notice_lines(found: Iterable[Notice], shown: int = 3) -> list[str]:
    """One line for each finding, with the number of utterances and the first names."""
    lines = []
    unique = list(dict.fromkeys(found))
    for finding, said in _SAID.items():
        ids = [notice.id for notice in unique if notice.finding == finding]
        if ids:
            names = ", ".join(ids[:shown]) + (" …" if len(ids) > shown else "")
            lines.append(f"{finding}: {names} ({len(ids):,} {'recording' if len(ids) == 1 else 'recordings'}): {said}.")
    return lines


def notice_record(notice: Notice) -> dict[str, str]:
    """Plain data for JSON, without the id.

    Example:
        >>> notice_record(Notice("a", "cut_off"))
        {'code': 'cut_off', 'message': 'the file ends before its header says, and the rest is missing.'}
    """
    return {"code": notice.finding, "message": f"{said_of(notice)}."}


def print_notices(found: Iterable[Notice]) -> None:
    """Print notices on standard error, once per command."""
    for line in notice_lines(found):
        print(f"warning: {line}", file=sys.stderr)


def warn_of(found: Iterable[Notice], *, stacklevel: int = 3) -> None:
    """Issue notices as Python warnings, for callers of the Python API."""
    for line in notice_lines(found):
        warnings.warn(line, stacklevel=stacklevel)


def integer_scale(peak: float, *, only_integers: bool) -> float | None:
    """Full scale of float samples that are integers, or None if the samples are in the range of floats.

    Args:
        peak: Largest absolute value of the file.
        only_integers: Whether every sample is an integer.

    Raises:
        OverflowError: The samples are above every integer format.

    Example:
        >>> integer_scale(12000.0, only_integers=True)
        32768.0
    """
    if peak <= (1.0 if only_integers else _INTEGER_PEAK):
        return None
    scale = next((scale for scale in _SCALES if peak <= scale), None)
    if scale is None:
        raise OverflowError(f"samples up to {peak:.3g}, expected floats from -1 to 1")
    return scale


def measured(samples_T: NDArray[np.float32], signal: Signal) -> Signal:
    """The signal with the figures of mono samples."""
    if not len(samples_T):
        return signal
    high, low = samples_T.max(), samples_T.min()
    peak = max(float(high), -float(low))
    clipped = np.abs(samples_T) > 1 if 1 < peak <= _OVER_PEAK else np.zeros(len(samples_T), dtype=bool)
    total = float(samples_T.sum(dtype=np.float64))
    if peak > _SILENT_PEAK:
        at_peak = at_peaks(samples_T, total / len(samples_T))
        runs = at_peak[2:] & at_peak[1:-1] & at_peak[:-2]
        for first in range(3):
            clipped[first : first + len(runs)] |= runs
    return replace(signal, samples=len(samples_T), peak=peak, total=total, clipped=int(clipped.sum()))


def at_peaks(samples_T: NDArray[np.float32], mean: float) -> NDArray[np.bool_]:
    """Which samples are at the positive or negative peak of sound.

    Sound goes to both sides of its mean, and clipping cuts it far from the mean. Samples that rest, as those of a
    constant and of the pauses between pulses, are at the mean or close to it. So a peak counts if its distance from the
    mean is more than -70 dB of full scale, and at least a quarter of that of the other peak.
    """
    high, low = samples_T.max(), samples_T.min()
    above, below = float(high) - mean, mean - float(low)
    least = max(_SILENT_PEAK, _FAINT * max(above, below))
    found = np.zeros(len(samples_T), dtype=bool)
    for value, distance in ((high, above), (low, below)):
        if distance >= least:
            found |= samples_T == value
    return found


def cancels(samples_TC: NDArray[np.float32], mean_T: NDArray[np.float32], rate: Hertz) -> bool:
    """Whether the mean of channels destroys sound that single channels have.

    In each second, the power of the mean is compared with that of a mix of channels with nothing in common, which is
    the sum of the channels' powers divided by the square of their number. Channels with opposite phase have less than a
    fifth. They cancel if more than a tenth of the recording's power is in seconds where they do.
    """
    channels = samples_TC.shape[1]
    starts = np.arange(0, len(samples_TC), rate)
    powers_NC = np.add.reduceat(np.square(samples_TC, dtype=np.float64), starts, axis=0)
    expected_N = powers_NC.sum(axis=1) / channels**2
    mean_N = np.add.reduceat(np.square(mean_T, dtype=np.float64), starts)
    lost_N = mean_N < _CANCELLED * expected_N
    return bool(expected_N[lost_N].sum() > _CANCELLED_SHARE * expected_N.sum())


def mix(samples_TC: NDArray[np.float32], downmix: Downmix, rate: Hertz) -> tuple[NDArray[np.float32], Signal]:
    """One channel of several.

    Args:
        samples_TC: float32 of shape (T, channels), at least one sample.
        downmix: ``mean`` or ``first``. Callers refuse several channels for ``refuse``.
        rate: Sample rate.

    Returns:
        float32 of shape (T,), and whether channels cancelled, with no other figures.
    """
    if samples_TC.shape[1] == 1 or downmix == "first":
        return samples_TC[:, 0], Signal()
    mean_T: NDArray[np.float32] = samples_TC.mean(axis=1)
    if not cancels(samples_TC, mean_T, rate):
        return mean_T, Signal()
    powers_C = np.square(samples_TC, dtype=np.float64).sum(axis=0)
    chosen = 0 if 2 * powers_C[0] >= powers_C.max() else int(powers_C.argmax())
    return samples_TC[:, chosen], Signal(cancelled=True)
