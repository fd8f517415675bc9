"""Tables of the automata that score labels one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_asr.decoding.fusion.state_tables import Extended, StateTable, silence
from ssl_asr.decoding.ngram_table import NGramTable


class LabelNGramTable(StateTable):
    """`ssl_asr.decoding.fusion.automata.LabelNGram` as a table. A state is a state of the model.

    Args:
        model: The model, with its weight.
        labels: Spelling of each label. None for ids that no text contains.
        ids: Word of the model for each label.
        device: Device of the search.
    """

    def __init__(
        self, model: NGramTable, labels: Sequence[str | None], ids: Sequence[int], device: torch.device
    ) -> None:
        self.begin, self._model = (model.begin,), model
        self._ids_V = torch.tensor(list(ids), device=device)
        self._silence_V = silence(labels, device)

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        log_probs_XC, nexts_XC = self._model.lookup(states_PX[0, ..., None], self._ids_V.take(labels_XC))
        return log_probs_XC + self._silence_V.take(labels_XC), [nexts_XC]

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        return self._model.ends(states_PX[0])


class LabelBonusTable(StateTable):
    """`ssl_asr.decoding.fusion.automata.LabelBonus` as a table. A state is no integers.

    Args:
        scores_V: Score of each label.
    """

    begin = ()

    def __init__(self, scores_V: Tensor) -> None:
        self._scores_V = scores_V

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        scores_XC = self._scores_V.take(labels_XC).expand(*states_PX.shape[1:], -1)
        return scores_XC, []

    def ends(self, states_PX: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros(states_PX.shape[1:], device=states_PX.device)
