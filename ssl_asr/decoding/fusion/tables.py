"""The sum of several automata, for a search that keeps the states of its beams on its device.

Most automata are tables of tensors (see `state_tables`). A neural language model or a KenLM binary is not: its keys are
numbered as searches reach them, and its rows are stored then::

    _keys        state -> keys
    _rows_SV     state, label -> score                   filled when the state is added
    _nexts_SV    state, label -> next state, or -1       filled when a search first takes the step
"""

import math
from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.state_tables import Extended, StateTable
from ssl_asr.types import on_device

# The rows are cleared between utterances when they exceed this number of cells (states x labels).
_MAX_CELLS = 100_000_000


class Fusion:
    """The sum of several automata.

    Args:
        parts: Automata. An empty list scores every label 0.
        size: Number of labels of the vocabulary.
        device: Device of the search.
    """

    def __init__(self, parts: Sequence[Automaton[Any]], *, size: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        found = [(part, part.table(self.device)) for part in parts]
        self._tables = [table for _, table in found if table is not None]
        listed = [part for part, table in found if table is None]
        self._reached = ReachedRows(listed, size=size, device=self.device) if listed else None
        if self._reached is not None:
            self._tables.append(self._reached)
        firsts = list(accumulate((len(table.begin) for table in self._tables), initial=0))
        self._rows = [slice(first, last) for first, last in pairwise(firsts)]

    def begin(self, *shape: int) -> Tensor:
        """States before the first label, ``(P, *shape)``. Clears stored rows that have grown too many."""
        if self._reached is not None:
            self._reached.shrink()
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


class ReachedRows(StateTable):
    """The sum of automata without tables. Rows are computed on the host when a search reaches their state.

    The result of `extend` holds ``-1 - (state * labels + label)`` for steps, which `arrive` turns into states.

    Args:
        parts: Automata.
        size: Number of labels of the vocabulary.
        device: Device of the search.
    """

    begin = (0,)

    def __init__(self, parts: Sequence[Automaton[Any]], *, size: int, device: torch.device) -> None:
        self.parts, self.size, self.device = list(parts), size, device
        self._clear()

    def shrink(self) -> None:
        """Clear all rows if they are too many."""
        if len(self._keys) * self.size > _MAX_CELLS:
            self._clear()

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`. Forbidden labels keep the state, so that no automaton is asked for what follows them."""
        states_X1 = states_PX[0, ..., None]
        cells_XC = torch.add(labels_XC, states_X1, alpha=self.size)
        scores_XC = self._rows_SV.take(cells_XC)
        return scores_XC, [torch.where(scores_XC > -math.inf, -1 - cells_XC, states_X1)]

    def arrive(self, states_PX: Tensor) -> None:
        """Turn steps into states, in place."""
        cells_PX = -1 - states_PX
        nexts_PX = torch.where(states_PX < 0, self._nexts_SV.take(cells_PX.clamp(min=0)), states_PX)
        unseen_PX = nexts_PX < 0
        if bool(unseen_PX.any()):
            nexts_PX[unseen_PX] = self._explore(cells_PX[unseen_PX])
        states_PX.copy_(nexts_PX)

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        flat = states_PX.flatten().tolist()
        for state in set(flat) - self._ends.keys():
            total = sum(part.end(key) for part, key in zip(self.parts, self._keys[state], strict=True))
            self._ends[state] = -math.inf if math.isnan(total) else total
        return torch.tensor([self._ends[state] for state in flat], device=self.device).view(states_PX.shape[1:])

    def _clear(self) -> None:
        self._keys: list[tuple[Hashable, ...]] = []
        self._rows_SV = torch.zeros(0, self.size, device=self.device)
        self._nexts_SV = torch.zeros(0, self.size, dtype=torch.int64, device=self.device)
        self._ends: dict[int, float] = {}
        begin = tuple(part.begin for part in self.parts)
        self._states: dict[tuple[Hashable, ...], int] = {begin: 0}
        self._add([begin])

    def _explore(self, cells_N: Tensor) -> Tensor:
        """Next states for steps that no search has taken before."""
        cells = list(set(cells_N.tolist()))
        pairs = [divmod(cell, self.size) for cell in cells]
        before = [self._keys[state] for state, _ in pairs]
        after = [
            [part.advance(key[place], label) for key, (_, label) in zip(before, pairs, strict=True)]
            for place, part in enumerate(self.parts)
        ]
        new: list[tuple[Hashable, ...]] = []
        targets = []
        for key in zip(*after, strict=True):
            found = self._states.get(key)
            if found is None:
                found = self._states[key] = len(self._keys) + len(new)
                new.append(key)
            targets.append(found)
        if new:
            self._add(new)
        self._nexts_SV.view(-1)[torch.tensor(cells, device=self.device)] = torch.tensor(targets, device=self.device)
        return self._nexts_SV.take(cells_N)

    def _add(self, keys: list[tuple[Hashable, ...]]) -> None:
        """Append states, and ask every automaton for their rows at once."""
        first = len(self._keys)
        self._keys += keys
        last = len(self._keys)
        rows_NV: Float64s = np.zeros((len(keys), self.size))
        for part, *column in zip(self.parts, *keys, strict=True):
            part.prefetch(column)
            rows_NV += part.rows(column)
        if last > len(self._rows_SV):
            room = max(256, 2 * last)
            self._rows_SV = _enlarged(self._rows_SV, room, 0.0)
            self._nexts_SV = _enlarged(self._nexts_SV, room, -1)
        # -inf - (-inf) is NaN; restore -inf.
        rows_NV[np.isnan(rows_NV)] = -math.inf
        self._rows_SV[first:last] = torch.from_numpy(rows_NV).to(self.device, torch.float32)


def _enlarged(table: Tensor, rows: int, fill: float) -> Tensor:
    larger = table.new_full((rows, *table.shape[1:]), fill)
    larger[: len(table)] = table
    return larger
