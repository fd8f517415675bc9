"""CTC decoders: greedy search, and prefix beam search with shallow fusion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar, Protocol

import torch
from annotated_types import Interval
from torch import Tensor

from ssl_asr.decoding.ctc_beam import CtcHypothesis, prefix_beam_search
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.options import FusionOptions
from ssl_asr.decoding.fusion.tables import LazyFusion
from ssl_asr.decoding.rescoring import Rescorer, n_best_conflicts
from ssl_asr.errors import ConfigError
from ssl_asr.types import BLANK_ID, PositiveFloat, PositiveInt


class CtcSearch(Protocol):
    """A search over CTC log-probabilities."""

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[CtcHypothesis]]:
        """For each utterance its hypotheses, best first. There is at least one; it may be empty.

        Results must not depend on frames beyond an utterance's length, nor on the other utterances of the batch.

        Args:
            log_probs_BFV: Float32 log-probabilities of shape (batch, frames, vocabulary), the blank at `BLANK_ID`.
            frame_lengths_B: Number of valid frames per utterance, int64, on the CPU.
        """


class CtcDecoder(Protocol):
    """The options of a CTC decoder. They build the search.

    To add your own decoder, write a frozen dataclass with these four members, and a YAML file in ``conf/decoder/`` (or
    in the folder given as ``--config-dir``). No base class is needed. A decoder that rescores its n-best list inherits
    `rescorer` from `ssl_asr.decoding.rescoring.Rescoring`. A decoder with language models and hotwords inherits their
    options from `ssl_asr.decoding.fusion.options.FusionOptions`, as `CtcBeam` does.

    Example:
        .. code-block:: python

            @dataclass(frozen=True, kw_only=True)
            class MyBeam:
                tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})
                beam_size: int
                n_best: int

                def build(self, labels: Sequence[str | None]) -> CtcSearch:
                    return MySearch(labels, beam_size=self.beam_size, n_best=self.n_best)

                def rescorer(self) -> None:
                    return None

        .. code-block:: yaml

            # my_configs/decoder/my_beam.yaml
            _target_: my_package.MyBeam
            beam_size: 8
            n_best: 1
    """

    tasks: ClassVar[frozenset[str]]
    """Tasks that the decoder is for: a subset of ``{"ctc", "joint"}``."""

    @property
    def n_best(self) -> int:
        """Number of hypotheses given for each utterance. A field, or a class attribute if it is constant."""

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        """The search over a vocabulary.

        Args:
            labels: Spelling of each label, a space as word boundary. None for the blank and the unknown label.

        Raises:
            LanguageModelError: A file of the decoder is missing or wrong.
        """

    def rescorer(self) -> Rescorer | None:
        """The rescorer of the n-best list. None for no rescoring.

        Raises:
            LanguageModelError: There is no such language model.
        """


@dataclass(frozen=True, kw_only=True)
class CtcGreedy:
    """The ``ctc_greedy`` decoder: the most likely label of each frame. It has no options."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})
    n_best: ClassVar[int] = 1

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        """Greedy search. It does not depend on the labels."""
        return greedy_search

    def rescorer(self) -> Rescorer | None:
        """None: one hypothesis is not rescored."""
        return None


@dataclass(frozen=True, kw_only=True)
class CtcBeam(FusionOptions):
    """The ``ctc_beam`` decoder: prefix beam search with shallow fusion. The other options are in `FusionOptions`.

    Attributes:
        beam_size: number of prefixes kept in each frame.
        beam_threshold: prefixes are pruned if their score (natural logarithm) is lower than the best score by more than
            this. null for no pruning.
        max_labels: number of the most likely labels of a frame that extend prefixes. null for all labels.
        blank_collapse: consecutive frames with a blank probability of at least this are merged into one step. null for
            no merging.
        n_best: number of hypotheses given for each utterance.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})
    beam_size: PositiveInt
    beam_threshold: PositiveFloat | None
    max_labels: PositiveInt | None
    blank_collapse: Annotated[float, Interval(gt=0, lt=1)] | None
    n_best: PositiveInt

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        """Prefix beam search over a vocabulary.

        Args:
            labels: Spelling of each label, a space as word boundary. None for the blank and the unknown label.

        Raises:
            LanguageModelError: A file is missing or wrong.
        """
        return BeamSearch(self, self.parts(labels), size=len(labels))

    def conflicts(self, run: object) -> Iterator[ConfigError]:
        """An n-best list that is longer than the beam."""
        return n_best_conflicts(self.beam_size, self.n_best)


class BeamSearch:
    """Prefix beam search with its options. The tables of the automata are kept between calls.

    Args:
        options: Options of the search.
        parts: Automata that score the labels.
        size: Number of labels of the vocabulary.
    """

    def __init__(self, options: CtcBeam, parts: Sequence[Automaton[Any]], *, size: int) -> None:
        self.options, self._fusion = options, LazyFusion(parts, size=size)

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[CtcHypothesis]]:
        """The n-best list of each utterance. See `CtcSearch`."""
        options = self.options
        return prefix_beam_search(
            log_probs_BFV,
            frame_lengths_B,
            beam_size=options.beam_size,
            blank=BLANK_ID,
            fusion=self._fusion.on(log_probs_BFV.device),
            max_labels=options.max_labels,
            blank_collapse=options.blank_collapse,
            beam_threshold=options.beam_threshold,
            n_best=options.searched(options.n_best),
        )


def collapse(path: list[int], blank: int) -> list[int]:
    """Labels of a CTC path: repeats are merged, then blanks are removed. A double label needs a blank in between.

    Example:
        >>> collapse([1, 1, 0, 1, 2, 2], blank=0)
        [1, 1, 2]
    """
    merged = (label for label, _ in groupby(path))
    return [label for label in merged if label != blank]


def greedy_paths(log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> tuple[list[list[int]], list[float]]:
    """The best path of each utterance over its valid frames, and the log-probability of the path.

    Args:
        log_probs_BFV: Log-probabilities of shape (batch, frames, vocabulary).
        frame_lengths_B: Number of valid frames per utterance, int64, on the CPU.
    """
    best = log_probs_BFV.max(dim=-1)
    # One transfer from the device for the batch. float32 holds labels exactly up to 2**24; some devices lack float64.
    packed = torch.stack([best.values.float(), best.indices.float()]).cpu()
    paths, scores = [], []
    for row, frames in enumerate(frame_lengths_B.tolist()):
        paths.append([int(label) for label in packed[1, row, :frames].tolist()])
        scores.append(float(packed[0, row, :frames].sum()))
    return paths, scores


def greedy_search(log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[CtcHypothesis]]:
    """The collapsed best path of each utterance. See `CtcSearch`."""
    results = []
    for path, score in zip(*greedy_paths(log_probs_BFV, frame_lengths_B), strict=True):
        begins = [t for t, label in enumerate(path) if label != BLANK_ID and (t == 0 or path[t - 1] != label)]
        results.append([CtcHypothesis([path[t] for t in begins], begins, score, 0.0)])
    return results
