"""Hotwords as a table over labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.label_arcs import LabelArcs
from ssl_asr.decoding.fusion.state_tables import Extended, StateTable, silence


class HotwordTable(StateTable):
    """`ssl_asr.decoding.fusion.hotwords.Hotwords` as a table. A state is the number of a key.

    A label is scored by the change of the credit, and by what is earned for phrases that it finishes.

    Args:
        arcs: Next keys.
        credit_N: Bonus on credit of each key.
        earned_space_N: What a space after each key earns.
        earned_M: What each arc earns.
        ends_N: Score of the end after each key.
        labels: Spelling of each label. None for ids that no text contains.
        begin: Key before the first label.
        device: Device of the search.
    """

    def __init__(
        self,
        arcs: LabelArcs,
        *,
        credit_N: Float64s,
        earned_space_N: Float64s,
        earned_M: Float64s,
        ends_N: Float64s,
        labels: Sequence[str | None],
        begin: int,
        device: torch.device,
    ) -> None:
        def on_device(values: Float64s) -> Tensor:
            return torch.from_numpy(values).to(device, torch.float32)

        self.begin, self._arcs = (begin,), arcs
        self._credit_N, self._earned_space_N = on_device(credit_N), on_device(earned_space_N)
        # Pairs without an arc earn nothing.
        self._earned_M = on_device(np.append(earned_M[arcs.order_M], 0.0))
        self._ends_N, self._silence_V = on_device(ends_N), silence(labels, device)

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        keys_X1 = states_PX[0, ..., None]
        nexts_XC, at_XC = self._arcs.follow(states_PX[0], labels_XC)
        change_XC = self._credit_N.take(nexts_XC) - self._credit_N.take(keys_X1) + self._earned_M.take(at_XC)
        spaces_XC = self._arcs.starts_word_V.take(labels_XC) * self._earned_space_N.take(keys_X1)
        return change_XC + spaces_XC + self._silence_V.take(labels_XC), [nexts_XC]

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        return self._ends_N.take(states_PX[0])
