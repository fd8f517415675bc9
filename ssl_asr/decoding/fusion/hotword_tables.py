"""Hotwords as a table over characters, and over labels if they are few."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s, Int64s
from ssl_asr.decoding.fusion.state_tables import Extended, StateTable, silence


class HotwordTable(StateTable):
    """`ssl_asr.decoding.fusion.hotwords.Hotwords` as a table. A state is the number of a key.

    Labels are read character by character.

    Args:
        scores_NA, nexts_NA: Score of each character after each key, and the next key.
        ends_N: Score of the end after each key.
        labels: Spelling of each label. None for ids that no text contains.
        characters: Characters that the columns stand for.
        begin: Key before the first label.
        device: Device of the search.
    """

    def __init__(
        self,
        scores_NA: Float64s,
        nexts_NA: Int64s,
        ends_N: Float64s,
        labels: Sequence[str | None],
        characters: Sequence[str],
        begin: int,
        device: torch.device,
    ) -> None:
        self.begin = (begin,)
        # One more column, for no character: it keeps the key.
        keys, none = np.arange(len(ends_N))[:, None], len(characters)
        self._scores_NA = torch.from_numpy(np.pad(scores_NA, ((0, 0), (0, 1)))).to(device, torch.float32)
        self._nexts_NA = torch.from_numpy(np.concatenate([nexts_NA, keys], axis=1)).to(device)
        self._ends_N = torch.from_numpy(ends_N).to(device, torch.float32)
        columns = {character: column for column, character in enumerate(characters)}
        longest = max(len(label or "") for label in labels)
        spelled = [[columns[c] for c in label or ""] for label in labels]
        # Column of each character of each label, `none` after its last one.
        padded = [[*own, *[none] * (longest - len(own))] for own in spelled]
        self._columns_UV = torch.tensor(padded, dtype=torch.int64, device=device).T.contiguous()
        self._silence_V = silence(labels, device)

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        nexts_XC, scores_XC = states_PX[0, ..., None], self._silence_V.take(labels_XC)
        for columns_V in self._columns_UV:
            cells_XC = torch.add(columns_V.take(labels_XC), nexts_XC, alpha=self._scores_NA.shape[1])
            nexts_XC, scores_XC = self._nexts_NA.take(cells_XC), scores_XC + self._scores_NA.take(cells_XC)
        return scores_XC, [nexts_XC]

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        return self._ends_N.take(states_PX[0])
