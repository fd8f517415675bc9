"""The interface of automata, and the automata that score labels one by one: label n-grams and a label bonus."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from ssl_asr.console import notify, shortened
from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.label_tables import LabelBonusTable, LabelNGramTable
from ssl_asr.decoding.fusion.state_tables import StateTable, dense_if_small
from ssl_asr.decoding.ngram import NGram
from ssl_asr.decoding.ngram_table import NGramTable
from ssl_asr.errors import LanguageModelError

KeyT = TypeVar("KeyT", bound=Hashable)


class Automaton(ABC, Generic[KeyT]):
    """Scores of labels after a label sequence. `ssl_asr.decoding.fusion` draws how a search uses them.

    A key stands for the labels so far. Keys are hashable, and equal keys give equal rows.
    """

    @property
    @abstractmethod
    def begin(self) -> KeyT:
        """Key before the first label."""

    @abstractmethod
    def rows(self, keys: Sequence[KeyT]) -> Float64s:
        """Score of each label after each key, ``(N, V)``. Minus infinity forbids the label."""

    @abstractmethod
    def advance(self, key: KeyT, label: int) -> KeyT:
        """Key after one more label. The label is not forbidden after `key`."""

    @abstractmethod
    def end(self, key: KeyT) -> float:
        """Score of the end of the text after a key."""

    def scores(self, key: KeyT, labels: Sequence[int]) -> Float64s:
        """Score of each of these labels after one key, ``(C,)``. Override it if it can be faster than a whole row."""
        scores_C: Float64s = self.rows([key])[0, list(labels)]
        return scores_C

    def prefetch(self, keys: Sequence[KeyT]) -> None:
        """Prefetch hook: called with the keys that `rows` will be asked for next.

        No-op by default. Override it if batched lookups are faster.
        """
        return

    def table(self, device: torch.device) -> StateTable | None:
        """The automaton as tensors on a device, with equal scores. None by default: a search calls `rows` instead."""
        return None


class LabelNGram(Automaton[int]):
    """An n-gram model over labels, weighted. Keys are the states of the model.

    Args:
        model: N-gram model. Its words are labels as `lm_token` writes them.
        labels: Spelling of each label. None for ids that no text contains (blank, unknown).
        weight: Weight of the log-probabilities.

    Raises:
        LanguageModelError: None of the labels is in the vocabulary of the model.
    """

    def __init__(self, model: NGram, labels: Sequence[str | None], *, weight: float) -> None:
        self.model, self.weight, self._labels = model, weight, labels
        self._silent_V = np.array([label is None for label in labels])
        self._ids_V = np.array([-1 if label is None else model.index.get(lm_token(label), -1) for label in labels])
        tokens = [lm_token(label) for label in labels if label]
        lacking = [token for token in tokens if not model.has_word(token)]
        if len(lacking) == len(tokens):
            what = f"the language model has none of the labels (first labels: {tokens[:3]})"
            raise LanguageModelError("decoder.lm", what, "set decoder.lm_unit=word, or make a model with unit=label")
        name_missing_labels(lacking, len(tokens), "decoder.lm", "score as its unknown word")

    @property
    def begin(self) -> int:
        """State at the start of a sentence."""
        return self.model.begin

    def rows(self, keys: Sequence[int]) -> Float64s:
        """Weighted log-probabilities. Labels outside the vocabulary get the log-probability of the unknown word."""
        rows_NV = np.stack([self.model.row(key)[np.maximum(self._ids_V, 0)] for key in keys])
        unknown_N1 = np.array([[self.model.step(key, -1)[0]] for key in keys])
        rows_NV = self.weight * np.where(self._ids_V >= 0, rows_NV, unknown_N1)
        rows_NV[:, self._silent_V] = -math.inf
        return rows_NV

    def advance(self, key: int, label: int) -> int:
        """State after a label."""
        return self.model.step(key, int(self._ids_V[label]))[1]

    def end(self, key: int) -> float:
        """Weighted log-probability of the end of the sentence."""
        return self.weight * self.model.end(key)

    def table(self, device: torch.device) -> StateTable:
        """See `Automaton`."""
        model = NGramTable(self.model.arrays(), weight=self.weight, device=device)
        ids = [model.unknown if i < 0 else i for i in self._ids_V.tolist()]
        table = LabelNGramTable(model, self._labels, ids, device)
        return dense_if_small(table, states=model.states, size=len(ids), device=device)


class LabelBonus(Automaton[None]):
    """A constant bonus for each label, against hypotheses that are too short.

    Args:
        labels: Spelling of each label. None for ids that no text contains.
        bonus: Score of each label.
    """

    def __init__(self, labels: Sequence[str | None], *, bonus: float) -> None:
        self._row_V = np.array([-math.inf if label is None else bonus for label in labels])

    @property
    def begin(self) -> None:
        """The only key."""
        return

    def rows(self, keys: Sequence[None]) -> Float64s:
        """The bonus for every label of the vocabulary."""
        return np.tile(self._row_V, (len(keys), 1))

    def advance(self, key: None, label: int) -> None:
        """The only key."""
        return

    def end(self, key: None) -> float:
        """Zero."""
        return 0.0

    def table(self, device: torch.device) -> StateTable:
        """See `Automaton`."""
        return LabelBonusTable(torch.from_numpy(self._row_V).to(device, torch.float32))


def name_missing_labels(lacking: Sequence[str], labels: int, where: str, effect: str) -> None:
    """Warn of labels that a language model over labels lacks, if there are any.

    Args:
        lacking: The labels.
        labels: Number of all labels.
        where: The language model, for the message.
        effect: What becomes of the labels, for the message.
    """
    if lacking:
        notify(
            f"{where}: {len(lacking):,} of {labels:,} labels are not in the model and {effect}: {shortened(lacking)}."
        )


def lm_token(label: str) -> str:
    """A label as a token of a language model's file, where tokens contain no spaces: ``▁`` replaces the space.

    Example:
        >>> lm_token(" the")
        '▁the'
    """
    return label.replace(" ", "▁")
