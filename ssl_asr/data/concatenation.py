"""Short training utterances joined to longer ones, in each epoch others.

    drawn      a1 (2 s)   b1 (4 s)   a2 (3 s)   a3 (4 s)   b2 (5 s)      speakers a and b, concatenate_s=8
    joined     a1+a2 (5 s)           b1 (4 s)   a3 (4 s)   b2 (5 s)

Only utterances of one speaker, language, task, prompt and weight are joined, in the order in which an epoch draws them.
A joined utterance counts as one utterance in the loss.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.filters import Limits
from ssl_asr.data.languages import is_spaced
from ssl_asr.data.parallel import map_ranges, ranges_of
from ssl_asr.data.sampler import Unit
from ssl_asr.data.targets import Targets
from ssl_asr.types import SAMPLE_RATE, Seconds, Utterance


class Concatenation:
    """Joins the utterances of an epoch.

    Args:
        utterances: Training utterances, all within the limits.
        limits: Limits of the model, which joined utterances keep.
        targets: What their targets need.
        longest_s: Longest joined utterance in seconds.
        seed: Equal seeds, epochs and draws give equal units.
    """

    def __init__(
        self, utterances: Sequence[Utterance], *, limits: Limits, targets: Targets, longest_s: Seconds, seed: int
    ) -> None:
        def kinds(start: int, end: int) -> list[object]:
            return [_kind(row) for row in utterances[start:end]]

        numbers: dict[object, int] = {}
        found = (kind for some in map_ranges(kinds, ranges_of(len(utterances))) for kind in some)
        self._kind_N = [numbers.setdefault(kind, len(numbers)) for kind in found]
        # A space joins two texts.
        self._tokens_N = (targets.tokens_N + 1).tolist()
        self._frames_N = (targets.frames_N + 1).tolist()
        self._limits, self._seed = limits, seed
        self._longest_s = longest_s if limits.max_s is None else min(longest_s, limits.max_s)

    def units(self, durations_N: NDArray[np.float64], drawn_N: NDArray[np.int64], epoch: int) -> list[Unit]:
        """The units of an epoch. Each drawn utterance is in one of them.

        Args:
            durations_N: float64, duration of each utterance in this epoch, in seconds.
            drawn_N: int64, indices of the utterances of the epoch.
            epoch: Number of the epoch.
        """
        rng = np.random.default_rng([self._seed, epoch, 4])
        durations, units = durations_N.tolist(), list[list[int]]()
        open_units: dict[int, list[int]] = {}
        for index in rng.permutation(drawn_N).tolist():
            kind = self._kind_N[index]
            unit = open_units.get(kind)
            if unit is not None and self._fits([*unit, index], durations):
                unit.append(index)
                continue
            units.append([index])
            # The shorter one has more room for the next utterance.
            if unit is None or durations[index] < sum(durations[one] for one in unit):
                open_units[kind] = units[-1]
        return [tuple(unit) for unit in units]

    def _fits(self, unit: Sequence[int], durations: Sequence[Seconds]) -> bool:
        total_s, limits = sum(durations[index] for index in unit), self._limits
        if total_s > self._longest_s:
            return False
        tokens = sum(self._tokens_N[index] for index in unit)
        if limits.max_tokens is not None and tokens + limits.prompt_tokens > limits.max_tokens:
            return False
        needed = sum(self._frames_N[index] for index in unit)
        return limits.ctc_frames is None or needed <= limits.ctc_frames(int(total_s * SAMPLE_RATE))


def _kind(utterance: Utterance) -> object:
    """What utterances must have in common to be joined."""
    tags = utterance.tags
    return tags.get("speaker"), utterance.lang, utterance.task, tags.get("prompt"), utterance.weight


def joined(utterances: Sequence[Utterance]) -> Utterance:
    """One utterance with the texts and the length of several. Its audio is theirs, one after the other.

    Example:
        >>> one = Utterance(id="a", audio_filepath="a.wav", duration=1.0, text="x")
        >>> joined([one, one]).text, joined([one, one]).id
        ('x x', 'a+a')
    """
    first = utterances[0]
    space = " " if is_spaced(first.lang) else ""
    return replace(
        first,
        id="+".join(one.id for one in utterances),
        duration=sum(one.duration for one in utterances),
        text=space.join(one.text for one in utterances),
        references=(),
    )
