"""Automata as tensors on the device of a search.

A state is one or several integers instead of a key. All automata with a table score the candidates of all beams by a
fixed number of tensor operations, and nothing waits for the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

# Scores and next states are stored for each state and label up to this number of pairs (12 bytes each), and up to this
# number of labels: searches over more labels score few of them.
_MAX_CELLS = 32_000_000
_MAX_LABELS = 10_000
# Pairs that are computed at once to store them.
_CHUNK_CELLS = 1_000_000


Extended = tuple[Tensor, list[Tensor]]
"""The result of `StateTable.extend`."""


class StateTable(ABC):
    """Scores of labels after states. See `ssl_asr.decoding.fusion.automata.Automaton`.

    Shape suffixes in addition to `ssl_asr.types`:

        P    integers of a state
        X    any number of dimensions, usually batch and beams
        C    candidate labels

    Attributes:
        begin: The state before the first label.
    """

    begin: tuple[int, ...]

    @abstractmethod
    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """Score of each label after each state, and the next state.

        Args:
            states_PX: int64 states.
            labels_XC: int64 labels. Dimensions before the last may be of size 1.

        Returns:
            ``scores_XC``, float32, minus infinity for forbidden labels, and the next states, a tensor ``nexts_XC`` for
            each integer of a state. The next state of a forbidden label is arbitrary.
        """

    @abstractmethod
    def ends(self, states_PX: Tensor) -> Tensor:
        """Score of the end of the text after each state, ``(X)``."""


class DenseTable(StateTable):
    """A table of one integer per state, with the score and the next state of every state and label.

    Args:
        begin: The state before the first label.
        scores_SV, nexts_SV, ends_S: Scores, next states, and scores of the end.
    """

    def __init__(self, begin: int, scores_SV: Tensor, nexts_SV: Tensor, ends_S: Tensor) -> None:
        self.begin, self._size = (begin,), scores_SV.shape[1]
        self._scores_SV, self._nexts_SV, self._ends_S = scores_SV, nexts_SV, ends_S

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        cells_XC = torch.add(labels_XC, states_PX[0, ..., None], alpha=self._size)
        return self._scores_SV.take(cells_XC), [self._nexts_SV.take(cells_XC)]

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        return self._ends_S.take(states_PX[0])


def dense_if_small(table: StateTable, *, states: int, size: int, device: torch.device) -> StateTable:
    """The table with a stored result for every state and label, if they are few. Otherwise the table itself.

    Args:
        table: A table of one integer per state.
        states: Number of states.
        size: Number of labels.
        device: Device of the search.
    """
    if states * size > _MAX_CELLS or size > _MAX_LABELS:
        return table
    labels_XC = torch.arange(size, device=device)[None]
    states_PX, step = torch.arange(states, device=device)[None], max(1, _CHUNK_CELLS // size)
    results = [table.extend(states_PX[:, first : first + step], labels_XC) for first in range(0, states, step)]
    ends_S = table.ends(states_PX)
    scores_SV = torch.cat([scores_NV for scores_NV, _ in results])
    nexts_SV = torch.cat([nexts_NV for _, (nexts_NV,) in results])
    return DenseTable(table.begin[0], scores_SV, nexts_SV, ends_S)


def silence(labels: Sequence[str | None], device: torch.device) -> Tensor:
    """Minus infinity for labels that no text contains, 0 for all other labels, ``(V,)``."""
    return torch.tensor([-torch.inf if label is None else 0.0 for label in labels], device=device)
