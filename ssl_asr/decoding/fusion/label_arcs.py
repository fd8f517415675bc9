"""Next states of labels that are spelled as text, for large vocabularies.

A label is read in two steps: the space before it if there is one, then the rest of its text. Labels with the same rest,
such as ``" the"`` and ``"the"``, share a column. Arcs lead from a state by a column to the next state. All pairs of a
state and a column without an arc lead to one state, so that arcs are few: with words of English and 50,000 labels,
about five per state::

    label            the first step                    the second step
    " the"           state -> after_space[state]       arc by "the", or `other`
    "the"            -                                 arc by "the", or `other`
    " "              state -> after_space[state]       -
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Int64s


@dataclass(frozen=True, slots=True)
class Arcs:
    """Arcs of states by columns.

    Attributes:
        states_M, columns_M: The pairs.
        nexts_M: Next state of each pair.
    """

    states_M: Int64s
    columns_M: Int64s
    nexts_M: Int64s


class SplitLabels:
    """Labels, split into a space and the rest.

    Args:
        labels: Spelling of each label. None for ids that no text contains.

    Attributes:
        starts_word: Whether each label begins with a space.
        columns: Column of each label.
        texts: Text of each column, without the space before it. The first one is empty.
    """

    def __init__(self, labels: Sequence[str | None]) -> None:
        spelled = [label or "" for label in labels]
        self.starts_word = [text.startswith(" ") for text in spelled]
        numbers = {"": 0}
        self.columns = [numbers.setdefault(text.removeprefix(" "), len(numbers)) for text in spelled]
        self.texts = list(numbers)


class LabelArcs:
    """Next states on the device of a search.

    Args:
        labels: The labels.
        after_space_N: Next state of each state after a space.
        arcs: Next states after the rest of a label, which is not empty.
        other: Next state of all pairs without an arc.
        device: Device of the search.
    """

    def __init__(
        self, labels: SplitLabels, after_space_N: Int64s, arcs: Arcs, other: int, device: torch.device
    ) -> None:
        self.starts_word_V = torch.tensor(labels.starts_word, device=device)
        self._columns_V = torch.tensor(labels.columns, device=device)
        self._size = len(labels.texts)
        self._after_space_N = torch.from_numpy(after_space_N).to(device)
        keys_M = arcs.states_M * self._size + arcs.columns_M
        self.order_M = np.argsort(keys_M, kind="stable")
        # A search for a key beyond the last one finds this key, which is none of the keys.
        self._keys_M = torch.from_numpy(np.append(keys_M[self.order_M], np.iinfo(np.int64).max)).to(device)
        self._nexts_M = torch.from_numpy(np.append(arcs.nexts_M[self.order_M], other)).to(device)

    def follow(self, states_X: Tensor, labels_XC: Tensor) -> tuple[Tensor, Tensor]:
        """The next state of each label, and the place of its arc in ``order_M``. Without an arc, the last place + 1.

        Args:
            states_X: int64 states.
            labels_XC: int64 labels. Dimensions before the last may be of size 1.
        """
        states_X1, columns_XC = states_X[..., None], self._columns_V.take(labels_XC)
        after_space_X1 = self._after_space_N.take(states_X1)
        states_XC = torch.where(self.starts_word_V.take(labels_XC), after_space_X1, states_X1)
        wanted_XC = torch.add(columns_XC, states_XC, alpha=self._size)
        at_XC = torch.searchsorted(self._keys_M, wanted_XC)
        at_XC = torch.where(self._keys_M.take(at_XC) == wanted_XC, at_XC, len(self._keys_M) - 1)
        return torch.where(columns_XC == 0, states_XC, self._nexts_M.take(at_XC)), at_XC


def trie_arcs(prefixes: Sequence[str], columns: Sequence[str]) -> Arcs:
    """Arcs from each prefix by the text of a column to a longer prefix.

    The letters of all prefixes are read backwards at once, by a trie of the columns' reversed texts.

    Args:
        prefixes: Sorted texts. Every prefix of a text is one of them; the first one is empty. States are their places.
        columns: Text of each column. Empty texts have no arcs.
    """
    last_N, parents_N = _letters(prefixes)
    trie = _ReversedTrie(columns)
    ends_N = ancestors_N = np.arange(1, len(prefixes))
    at_N = np.zeros(len(ends_N), dtype=np.int64)
    found: list[tuple[Int64s, Int64s, Int64s]] = []
    while len(ends_N):
        at_N = trie.step(at_N, last_N[ancestors_N])
        known_N = at_N > 0
        ends_N, at_N, ancestors_N = ends_N[known_N], at_N[known_N], parents_N[ancestors_N[known_N]]
        columns_N = trie.columns_N[at_N]
        is_arc_N = columns_N >= 0
        found.append((ancestors_N[is_arc_N], columns_N[is_arc_N], ends_N[is_arc_N]))
        longer_N = ancestors_N > 0
        ends_N, at_N, ancestors_N = ends_N[longer_N], at_N[longer_N], ancestors_N[longer_N]
    empty = np.zeros(0, dtype=np.int64)
    return Arcs(*(np.concatenate([empty, *own]) for own in zip(*found, strict=True)) if found else (empty,) * 3)


def _letters(prefixes: Sequence[str]) -> tuple[Int64s, Int64s]:
    """Code of the last letter of each text, and the place of the text without it. Both are 0 for the empty text."""
    last_N = np.array([ord(text[-1]) if text else 0 for text in prefixes], dtype=np.int64)
    lengths_N = np.array([len(text) for text in prefixes], dtype=np.int64)
    parents_N = np.zeros(len(prefixes), dtype=np.int64)
    shorter_N = np.zeros(1, dtype=np.int64)
    for length in range(1, int(lengths_N.max()) + 1):
        # In sorted order, the last shorter text before a text is its prefix.
        own_N = np.flatnonzero(lengths_N == length)
        parents_N[own_N] = shorter_N[np.searchsorted(shorter_N, own_N) - 1]
        shorter_N = own_N
    return last_N, parents_N


class _ReversedTrie:
    """Reversed texts, letter by letter, for many texts at once. Node 0 is the root.

    Attributes:
        columns_N: Column of each node. -1 if no column ends there.
    """

    # Above all codes of letters.
    _CODES = 0x110000

    def __init__(self, texts: Sequence[str]) -> None:
        nodes: dict[int, int] = {}
        columns = [-1]
        for column, text in enumerate(texts):
            node = 0
            for letter in reversed(text):
                node = nodes.setdefault(node * self._CODES + ord(letter), len(columns))
                if node == len(columns):
                    columns.append(-1)
            if text:
                columns[node] = column
        self.columns_N = np.array(columns)
        keys_N, nexts_N = np.array(list(nodes), dtype=np.int64), np.array(list(nodes.values()), dtype=np.int64)
        order_N = np.argsort(keys_N)
        self._keys_N = np.append(keys_N[order_N], np.iinfo(np.int64).max)
        self._nexts_N = np.append(nexts_N[order_N], 0)

    def step(self, nodes_N: Int64s, codes_N: Int64s) -> Int64s:
        """Nodes after one more letter, 0 if there are none."""
        wanted_N = nodes_N * self._CODES + codes_N
        at_N = np.searchsorted(self._keys_N, wanted_N)
        return np.where(self._keys_N[at_N] == wanted_N, self._nexts_N[at_N], 0)
