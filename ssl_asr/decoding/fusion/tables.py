"""The sum of several automata, for a search that keeps the states of its beams on its device.

Most automata are tables of tensors (see `state_tables`). A neural language model, a KenLM binary or an automaton of
another package is not: their keys are numbered as searches reach them, and their scores are computed on the host (see
`reached`).
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.reached import ReachedKeys, ReachedRows
from ssl_asr.decoding.fusion.state_tables import Extended
from ssl_asr.types import on_device


class Fusion:
    """The sum of several automata.

    If an automaton has no table, a second search must not begin before the first one has ended.

    Args:
        parts: Automata. An empty list scores every label 0.
        size: Number of labels of the vocabulary.
        device: Device of the search.
        whole_rows: Whether to compute and keep the scores of all labels for automata without tables. False for large
            vocabularies: only the labels that are asked for are scored, at each step anew.
    """

    def __init__(
        self,
        parts: Sequence[Automaton[Any]],
        *,
        size: int,
        device: torch.device | str = "cpu",
        whole_rows: bool = True,
    ) -> None:
        self.device = torch.device(device)
        found = [(part, part.table(self.device)) for part in parts]
        self._tables = [table for _, table in found if table is not None]
        listed = [part for part, table in found if table is None]
        reached = ReachedRows if whole_rows else ReachedKeys
        self._reached = reached(listed, size=size, device=self.device) if listed else None
        if self._reached is not None:
            self._tables.append(self._reached)
        firsts = list(accumulate((len(table.begin) for table in self._tables), initial=0))
        self._rows = [slice(first, last) for first, last in pairwise(firsts)]

    def begin(self, *shape: int) -> Tensor:
        """States before the first label, ``(P, *shape)``. A new search begins."""
        if self._reached is not None:
            self._reached.restart()
        begin_P = torch.tensor([i for table in self._tables for i in table.begin], dtype=torch.int64)
        return on_device(begin_P, self.device).view(-1, *(1 for _ in shape)).repeat(1, *shape)

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """Sum of the scores of each label after each state, and the next states. See `StateTable.extend`."""
        if not self._tables:
            return torch.zeros(*states_PX.shape[1:], labels_XC.shape[-1], device=self.device), []
        pairs = zip(self._tables, self._rows, strict=True)
        results = [table.extend(states_PX[own], labels_XC) for table, own in pairs]
        total_XC = results[0][0]
        for scores_XC, _ in results[1:]:
            total_XC = total_XC + scores_XC
        return total_XC, [nexts_XC for _, nexts in results for nexts_XC in nexts]

    def arrive(self, states_PX: Tensor) -> None:
        """Call it with the states of the beams that a search keeps, from the result of `extend`. Changes them in place.

        Waits for the device only if an automaton has no table.
        """
        if self._reached is not None:
            self._reached.arrive(states_PX[-1:])

    def ends(self, states_PX: Tensor) -> Tensor:
        """Sum of the scores of the end of the text after each state."""
        total_X = torch.zeros(states_PX.shape[1:], device=self.device)
        for table, own in zip(self._tables, self._rows, strict=True):
            total_X = total_X + table.ends(states_PX[own])
        return total_X


class LazyFusion:
    """Automata whose tables are built at the first search, and again if the device changes.

    Args:
        parts: The automata.
        size, whole_rows: See `Fusion`.
    """

    def __init__(self, parts: Sequence[Automaton[Any]], *, size: int, whole_rows: bool = True) -> None:
        self._parts, self._size, self._whole_rows = list(parts), size, whole_rows
        self._built: Fusion | None = None

    def on(self, device: torch.device) -> Fusion | None:
        """The automata on a device. None if there are none."""
        if self._parts and (self._built is None or self._built.device != device):
            self._built = Fusion(self._parts, size=self._size, device=device, whole_rows=self._whole_rows)
        return self._built
