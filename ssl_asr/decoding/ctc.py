"""CTC decoding: the best label of each frame, or a beam of prefixes with what language models add."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from ssl_asr.decoding.ctc_beam import Found, prefix_beam_search
from ssl_asr.decoding.fusion import Automaton, Fusion
from ssl_asr.decoding.language_models import FusionOptions
from ssl_asr.types import BLANK_ID


class CtcSearch(Protocol):
    """From log-probabilities to label sequences, best first; at least one for each utterance."""

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[Found]]:
        """``log_probs_BFV`` float32; ``frame_lengths_B`` int64 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class CtcGreedy:
    """The ``ctc_greedy`` decoder; it has no settings."""

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        """The search over a vocabulary, its labels spelt as text."""
        return greedy_search


@dataclass(frozen=True, kw_only=True)
class CtcBeam(FusionOptions):
    """The ``ctc_beam`` decoder: prefix beam search, with what `FusionOptions` adds.

    Attributes:
        beam_size: prefixes kept.
        beam_threshold: prefixes whose score is so far below the best one's are dropped (natural logarithm); null
            drops none.
        max_labels: so many of a frame's likeliest labels are tried; null tries all.
        blank_collapse: frames in a row whose blank is at least so probable are one step; null for none.
        n_best: texts given for each utterance.
    """

    beam_size: int
    beam_threshold: float | None
    max_labels: int | None
    blank_collapse: float | None
    n_best: int

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        """The search over a vocabulary, its labels spelt as text.

        Raises:
            LanguageModelError: a file is missing or wrong.
        """
        return BeamSearch(self, self.parts(labels), size=len(labels))


class BeamSearch:
    """Prefix beam search with its settings; what language models were asked is kept between calls.

    Args:
        options: of the search.
        parts: what is added to labels.
        size: of the vocabulary.
    """

    def __init__(self, options: CtcBeam, parts: Sequence[Automaton], *, size: int) -> None:
        self.options, self.parts, self.size = options, parts, size
        self._fusion: Fusion | None = None

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[Found]]:
        """The best prefixes of each utterance."""
        device = log_probs_BFV.device
        if self.parts and (self._fusion is None or self._fusion.device != device):
            self._fusion = Fusion(self.parts, size=self.size, device=device)
        options = self.options
        return prefix_beam_search(
            log_probs_BFV,
            frame_lengths_B,
            beam_size=options.beam_size,
            blank=BLANK_ID,
            fusion=self._fusion,
            max_labels=options.max_labels,
            blank_collapse=options.blank_collapse,
            beam_threshold=options.beam_threshold,
            n_best=options.searched(options.n_best),
        )


def collapse(path: list[int], blank: int) -> list[int]:
    """The labels of a CTC path: repeats merged first, then blanks dropped, so that LL needs a blank between.

    Example:
        >>> collapse([1, 1, 0, 1, 2, 2], blank=0)
        [1, 1, 2]
    """
    merged = (label for label, _ in groupby(path))
    return [label for label in merged if label != blank]


def greedy_paths(log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> tuple[list[list[int]], list[float]]:
    """The best path of each utterance over its own frames, and its log-probability.

    One transfer from the device for the batch. ``frame_lengths_B`` is int64 on the CPU.
    """
    best = log_probs_BFV.max(dim=-1)
    # Labels are exact in float32 up to 2**24; not every accelerator has float64.
    packed = torch.stack([best.values.float(), best.indices.float()]).cpu()
    paths, scores = [], []
    for row, frames in enumerate(frame_lengths_B.tolist()):
        paths.append([int(label) for label in packed[1, row, :frames].tolist()])
        scores.append(float(packed[0, row, :frames].sum()))
    return paths, scores


def greedy_search(log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[Found]]:
    """The collapsed best path of each utterance."""
    found = []
    for path, score in zip(*greedy_paths(log_probs_BFV, frame_lengths_B), strict=True):
        begins = [t for t, label in enumerate(path) if label != BLANK_ID and (t == 0 or path[t - 1] != label)]
        found.append([Found([path[t] for t in begins], begins, score, 0.0)])
    return found
