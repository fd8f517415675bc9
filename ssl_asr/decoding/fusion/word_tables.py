"""Word scores as tables: nodes for the spelling of the unfinished word, and an n-gram model over words.

A node stands for the letters of the unfinished word. Node 0 has none. The last node stands for all spellings with which
no word begins. Every other node is a prefix of some word. An arc leads from a node by a label to a longer node (see
`label_arcs`)::

    nodes    0 ("")   1 ("t")   2 ("th")   3 ("the")   4 (other)
    arcs     0 -t-> 1 -h-> 2 -e-> 3,   0 -th-> 2               4 by all other labels without a space
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s, Int64s
from ssl_asr.decoding.fusion.label_arcs import LabelArcs, SplitLabels, trie_arcs
from ssl_asr.decoding.fusion.state_tables import Extended, StateTable, dense_if_small, silence
from ssl_asr.decoding.ngram_table import NGramTable


@dataclass(frozen=True, kw_only=True)
class SpellingNodes:
    """What is known about each node.

    Attributes:
        texts: Letters of each node, sorted but for the last one: a text that no word begins with.
        charged_N: Price charged in advance. Minus infinity for spellings that are forbidden.
        finish_N: Score of the finished word without the language model. Minus infinity if the word is forbidden.
        words_N: Id of the word in the language model.
    """

    texts: Sequence[str]
    charged_N: Float64s
    finish_N: Float64s
    words_N: Int64s


class SpellingTable(StateTable):
    """Change of the price charged in advance by each label, and the next node. A state is a node.

    Args:
        nodes: The nodes.
        labels: Spelling of each label. None for ids that no text contains. A space is the first character if there is
            one.
        device: Device of the search.
    """

    begin = (0,)

    def __init__(self, nodes: SpellingNodes, labels: Sequence[str | None], device: torch.device) -> None:
        split, other = SplitLabels(labels), len(nodes.texts) - 1
        # A space leads to node 0 from everywhere.
        after_space_N = np.zeros(len(nodes.texts), dtype=np.int64)
        self._arcs = LabelArcs(split, after_space_N, trie_arcs(nodes.texts[:-1], split.texts), other, device)
        self._silence_V = silence(labels, device)
        charged_N = torch.from_numpy(nodes.charged_N).to(device, torch.float32)
        # Nothing is refunded where a search cannot be: minus infinity from minus infinity is no number.
        self._charged_N, self._refund_N = charged_N, charged_N.masked_fill(charged_N == -torch.inf, 0.0)

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        nexts_XC, _ = self._arcs.follow(states_PX[0], labels_XC)
        change_XC = self._charged_N.take(nexts_XC) - self._refund_N.take(states_PX[0])[..., None]
        return change_XC + self._silence_V.take(labels_XC), [nexts_XC]

    def ends(self, states_PX: Tensor) -> Tensor:
        """What is refunded at the end."""
        return -self._refund_N.take(states_PX[0])


class WordTable(StateTable):
    """`ssl_asr.decoding.fusion.words.Words` as a table. A state is a node, and a state of the language model if any.

    Args:
        nodes: The nodes.
        labels: Spelling of each label. None for ids that no text contains.
        model: The language model, with its weight. None for no language model.
        device: Device of the search.
    """

    def __init__(
        self, nodes: SpellingNodes, labels: Sequence[str | None], model: NGramTable | None, device: torch.device
    ) -> None:
        spelling = SpellingTable(nodes, labels, device)
        self._spelling = dense_if_small(spelling, states=len(nodes.texts), size=len(labels), device=device)
        self._model = model
        self.begin = (0,) if model is None else (0, model.begin)
        self._ends_word_V = torch.tensor([(label or "").startswith(" ") for label in labels], device=device)
        self._words_N = torch.from_numpy(nodes.words_N).to(device)
        self._finish_N = torch.from_numpy(nodes.finish_N).to(device, torch.float32)
        # No word ends here, or no word may end here: the state of the language model stays.
        self._keeps_N = torch.from_numpy((nodes.finish_N == -np.inf) | (np.arange(len(nodes.texts)) == 0)).to(device)

    def extend(self, states_PX: Tensor, labels_XC: Tensor) -> Extended:
        """See `StateTable`."""
        scores_XC, nexts = self._spelling.extend(states_PX[:1], labels_XC)
        ends_XC = self._ends_word_V.take(labels_XC)
        finish_X, after_X = self._finish(states_PX)
        scores_XC = torch.where(ends_XC, scores_XC + finish_X[..., None], scores_XC)
        if after_X is None:
            return scores_XC, nexts
        return scores_XC, [*nexts, torch.where(ends_XC, after_X[..., None], states_PX[1, ..., None])]

    def ends(self, states_PX: Tensor) -> Tensor:
        """See `StateTable`."""
        finish_X, after_X = self._finish(states_PX)
        total_X = finish_X + self._spelling.ends(states_PX[:1])
        return total_X if self._model is None or after_X is None else total_X + self._model.ends(after_X)

    def _finish(self, states_PX: Tensor) -> tuple[Tensor, Tensor | None]:
        """Score of the word that ends after each state, and the state of the language model after the word."""
        nodes_X = states_PX[0]
        finish_X = self._finish_N.take(nodes_X)
        if self._model is None:
            return finish_X, None
        log_probs_X, after_X = self._model.lookup(states_PX[1], self._words_N.take(nodes_X))
        keeps_X = self._keeps_N.take(nodes_X)
        return torch.where(keeps_X, finish_X, finish_X + log_probs_X), torch.where(keeps_X, states_PX[1], after_X)


def prefixes(words: Collection[str]) -> frozenset[str]:
    """Every prefix of the words, the words included."""
    return frozenset(word[:length] for word in words for length in range(1, len(word) + 1))
