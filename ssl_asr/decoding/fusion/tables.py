"""The sum of several automata as tables on the device of the search.

A state is the row number of a tuple of keys, one key for each automaton::

    _keys        state -> keys
    _rows_SV     state, label -> fused score              filled when the state is added
    _nexts_SV    state, label -> next state, or -1        filled when a search first takes the step
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton

# The tables are cleared between utterances when they exceed this number of cells (states x labels).
_MAX_CELLS = 100_000_000


class Fusion:
    """The sum of several automata, as tables that a search gathers from.

    Args:
        parts: Automata. An empty list scores every label 0.
        size: Number of labels of the vocabulary.
        device: Device of the search.
    """

    def __init__(self, parts: Sequence[Automaton[Any]], *, size: int, device: torch.device | str = "cpu") -> None:
        self.parts, self.size, self.device = list(parts), size, torch.device(device)
        self._clear()

    def begin(self) -> int:
        """State before the first label. Clears tables that have grown too large."""
        if len(self._keys) * self.size > _MAX_CELLS:
            self._clear()
        return 0

    def rows(self, states: Tensor) -> Tensor:
        """Score of each label after these states, of their shape and ``V``.

        Args:
            states: int64 states of any shape, on the device of the tables.
        """
        return self._rows_SV[states]

    def ends(self, states: Tensor) -> Tensor:
        """Score of the end of the text after these states, of their shape."""
        flat = states.flatten().tolist()
        for state in set(flat) - self._ends.keys():
            total = sum(part.end(key) for part, key in zip(self.parts, self._keys[state], strict=True))
            self._ends[state] = -math.inf if math.isnan(total) else total
        return torch.tensor([self._ends[state] for state in flat], device=self.device).view(states.shape)

    def nexts(self, states: Tensor, labels: Tensor) -> Tensor:
        """States after one more label each. A label below 0 keeps the state."""
        nexts = torch.where(labels < 0, states, self._nexts_SV[states, labels.clamp(min=0)])
        unseen = nexts < 0
        if bool(unseen.any()):
            nexts[unseen] = self._explore(states[unseen], labels[unseen])
        return nexts

    def _clear(self) -> None:
        self._keys: list[tuple[Hashable, ...]] = []
        self._rows_SV = torch.zeros(0, self.size, device=self.device)
        self._nexts_SV = torch.zeros(0, self.size, dtype=torch.int64, device=self.device)
        self._ends: dict[int, float] = {}
        begin = tuple(part.begin for part in self.parts)
        self._states: dict[tuple[Hashable, ...], int] = {begin: 0}
        self._add([begin])

    def _explore(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """Next states for steps that no search has taken before."""
        pairs = list(set(zip(states_N.tolist(), labels_N.tolist(), strict=True)))
        before = [self._keys[state] for state, _ in pairs]
        after = [
            [part.advance(key[place], label) for key, (_, label) in zip(before, pairs, strict=True)]
            for place, part in enumerate(self.parts)
        ]
        new: list[tuple[Hashable, ...]] = []
        targets = []
        for key in zip(*after, strict=True) if after else before:
            found = self._states.get(key)
            if found is None:
                found = self._states[key] = len(self._keys) + len(new)
                new.append(key)
            targets.append(found)
        if new:
            self._add(new)
        places = torch.tensor(pairs, device=self.device)
        self._nexts_SV[places[:, 0], places[:, 1]] = torch.tensor(targets, device=self.device)
        return self._nexts_SV[states_N, labels_N]

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
