"""Automata without tables: their keys are numbered as searches reach them, and they are asked on the host.

`ReachedRows` keeps the scores of all labels after each state, for small vocabularies::

    _keys        state -> keys
    _rows_SV     state, label -> score                   filled when the state is added
    _nexts_SV    state, label -> next state, or -1       filled when a search first takes the step

`ReachedKeys` asks for the candidates of each step, for large vocabularies.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.state_tables import Extended, StateTable

# The rows are cleared between utterances when they exceed this number of cells (states x labels).
_MAX_CELLS = 100_000_000


class _Reached(StateTable):
    """The sum of automata without tables.

    The result of `extend` holds ``-1 - (state * labels + label)`` for steps, which `arrive` turns into states.

    Args:
        parts: Automata.
        size: Number of labels of the vocabulary.
        device: Device of the search.
    """

    begin = (0,)
    _keys: list[tuple[Hashable, ...]]

    def __init__(self, parts: Sequence[Automaton[Any]], *, size: int, device: torch.device) -> None:
        self.parts, self.size, self.device = list(parts), size, device
        self._clear()

    def _clear(self) -> None:
        """Forget all keys but the first one."""
        raise NotImplementedError


class ReachedRows(_Reached):
    """The sum of automata without tables. Rows are computed on the host when a search reaches their state."""

    def restart(self) -> None:
        """Call it before a search. Clears all rows if they are too many."""
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
            self._ends[state] = _ends(self.parts, self._keys[state])
        return torch.tensor([self._ends[state] for state in flat], device=self.device).view(states_PX.shape[1:])

    def _clear(self) -> None:
        self._keys = []
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


class ReachedKeys(_Reached):
    """The sum of automata without tables, for large vocabularies. Only the labels that are asked for are scored.

    States are the numbers of the keys of the present step.
    """

    def restart(self) -> None:
        """Call it before a search."""
        self._clear()

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`. Forbidden labels keep the state, so that no automaton is asked for what follows them."""
        labels_XC = labels_XC.expand(*states_PX.shape[1:], -1)
        states_X1 = states_PX[0, ..., None]
        # One transfer for both.
        asked = torch.cat([states_X1, labels_XC], dim=-1).flatten(0, -2).tolist()
        for place, part in enumerate(self.parts):
            part.prefetch([self._keys[state][place] for state, *_ in asked])
        # Rows with equal keys and labels are frequent among the beams of a step.
        rows = {own: self._row(self._keys[own[0]], own[1:]) for own in dict.fromkeys(map(tuple, asked))}
        scores_NC = torch.from_numpy(np.stack([rows[tuple(own)] for own in asked]))
        scores_XC = scores_NC.to(self.device, torch.float32).view(labels_XC.shape)
        steps_XC = -1 - torch.add(labels_XC, states_X1, alpha=self.size)
        return scores_XC, [torch.where(scores_XC > -math.inf, steps_XC, states_X1)]

    def arrive(self, states_PX: Tensor) -> None:
        """Turn steps into states, in place, and forget all keys but theirs."""
        found = states_PX.flatten().tolist()
        keys = {state: self._after(state) for state in dict.fromkeys(found)}
        self._keys = list(dict.fromkeys(keys.values()))
        numbers = {key: number for number, key in enumerate(self._keys)}
        states_N = torch.tensor([numbers[keys[state]] for state in found], device=self.device)
        states_PX.copy_(states_N.view(states_PX.shape))

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        flat = states_PX.flatten().tolist()
        totals = {state: _ends(self.parts, self._keys[state]) for state in set(flat)}
        return torch.tensor([totals[state] for state in flat], device=self.device).view(states_PX.shape[1:])

    def _clear(self) -> None:
        self._keys = [tuple(part.begin for part in self.parts)]

    def _row(self, key: tuple[Hashable, ...], labels: tuple[int, ...]) -> Float64s:
        row_C = np.zeros(len(labels))
        for part, own in zip(self.parts, key, strict=True):
            row_C += part.scores(own, labels)
        # -inf - (-inf) is NaN; restore -inf.
        row_C[np.isnan(row_C)] = -math.inf
        return row_C

    def _after(self, state: int) -> tuple[Hashable, ...]:
        """Key of a state or of a step."""
        if state >= 0:
            return self._keys[state]
        before, label = divmod(-1 - state, self.size)
        return tuple(part.advance(key, label) for part, key in zip(self.parts, self._keys[before], strict=True))


def _ends(parts: Sequence[Automaton[Any]], key: tuple[Hashable, ...]) -> float:
    """Sum of the scores of the end after a key."""
    total = sum(part.end(own) for part, own in zip(parts, key, strict=True))
    # -inf - (-inf) is NaN; restore -inf.
    return -math.inf if math.isnan(total) else total


def _enlarged(table: Tensor, rows: int, fill: float) -> Tensor:
    larger = table.new_full((rows, *table.shape[1:]), fill)
    larger[: len(table)] = table
    return larger
