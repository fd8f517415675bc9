"""What is added to a search from outside: language models, hotwords, lexicons, behind one interface.

Each is a deterministic automaton over the labels of a vocabulary, found out as far as a search has been: a state has a
row of scores, one for each label that may follow, and a label leads to a next state. The search only gathers. States
and their rows are kept from one utterance to the next.

Labels are spelt as text, a space in it standing where a word ends (``" "``, or ``" the"`` for a piece that begins a
word).
"""

import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_asr.decoding.ngram import Float64s, NGram
from ssl_asr.errors import LanguageModelError

# States of which the rows are kept at most; beyond, all are forgotten between utterances.
_MAX_CELLS = 100_000_000
# Words after states that are remembered, for the same reason.
_MAX_KEPT = 1_000_000


# Begins no word.
_SOME_UNKNOWN_WORD = "\0"


class WordModel(Protocol):
    """A language model over words; states are hashable."""

    @property
    def begin(self) -> Any:
        """The state before the first word."""

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Log-probability of a word after a state, and the state after it."""

    def end(self, state: Any) -> float:
        """Log-probability of the end."""

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""


@runtime_checkable
class BatchedWordModel(WordModel, Protocol):
    """A model that is quicker when it is asked many things at once."""

    def prefetch(self, pairs: Sequence[tuple[Any, str]]) -> None:
        """Find out about words after states that are to be asked for."""


class Automaton(Protocol):
    """Scores for labels, by hashable keys."""

    def prepare(self, keys: Sequence[Any]) -> None:
        """Told of the keys whose rows are asked for next; nothing is done but by what is slow one by one."""
        return

    @property
    def begin(self) -> Hashable:
        """The key before the first label."""

    def rows(self, keys: Sequence[Any]) -> Float64s:
        """What each label would add after each of these keys, ``(N, V)``; minus infinity forbids it."""

    def advance(self, key: Any, label: int) -> Hashable:
        """The key after a label."""

    def end(self, key: Any) -> float:
        """What the end of the text adds."""


class LabelNGram(Automaton):
    """An n-gram model over labels, weighted, with a bonus for each label.

    Args:
        model: its words are the labels as `spelt` writes them.
        labels: of the vocabulary, by id; None for ids that no text contains (blank, unknown).
        weight: of log-probabilities.
    """

    def __init__(self, model: NGram, labels: Sequence[str | None], *, weight: float) -> None:
        self.model, self.weight = model, weight
        self._silent = np.array([label is None for label in labels])
        self._ids = np.array([-1 if label is None else model.index.get(spelt(label), -1) for label in labels])
        if not any(model.knows(spelt(label)) for label in labels if label is not None):
            what = f"knows none of the labels, such as {[spelt(label) for label in labels if label][:3]}"
            raise LanguageModelError("decoder.lm", what, "decoder.lm_unit=word, or a model made with unit=label")

    @property
    def begin(self) -> int:
        """The start of a sentence."""
        return self.model.begin

    def rows(self, keys: Sequence[int]) -> Float64s:
        """Weighted log-probabilities."""
        rows_NV = np.stack([self.model.row(key)[np.maximum(self._ids, 0)] for key in keys])
        unknown_N1 = np.array([[self.model.step(key, -1)[0]] for key in keys])
        rows_NV = self.weight * np.where(self._ids >= 0, rows_NV, unknown_N1)
        rows_NV[:, self._silent] = -math.inf
        return rows_NV

    def advance(self, key: int, label: int) -> int:
        """The state after a label."""
        return self.model.step(key, int(self._ids[label]))[1]

    def end(self, key: int) -> float:
        """Weighted log-probability of the end."""
        return self.weight * self.model.end(key)


def spelt(label: str) -> str:
    """A label as a word of a language model's file, where no word has a space: SentencePiece's ``▁``."""
    return label.replace(" ", "▁")


class Words(Automaton):
    """Scores of whole words, given where a word ends; any spelling is allowed unless a vocabulary closes it.

    All that an unknown word costs is charged as soon as no known one begins so, and given back where the word ends: a
    search has better use for its beam than the many ways to spell what nobody knows. Known words cost nothing before
    they end; charging their best unigram in advance found texts of higher score with more errors in them.

    Args:
        labels: of the vocabulary, by id, spelt as text; None for ids that no text contains.
        model: a language model over words; None scores none.
        weight: of its log-probabilities.
        word_score: added for each word.
        unknown_score: added for each word that is not among ``vocabulary``; minus infinity allows none.
        vocabulary: the known words; None where nobody can say, as with some binary models.
        unknown_log_prob: what the model gives a word that it does not know, out of context.
        unknown_alike: all words outside the vocabulary are one to the model. How one is spelt then need not be
            remembered, which saves most of the states there are.
    """

    def __init__(
        self,
        labels: Sequence[str | None],
        *,
        model: WordModel | None,
        weight: float,
        word_score: float,
        unknown_score: float,
        vocabulary: Collection[str] | None,
        unknown_log_prob: float = 0.0,
        unknown_alike: bool = False,
    ) -> None:
        self.labels, self.model, self.weight = labels, model, weight
        self.word_score, self.unknown_score = word_score, unknown_score
        self.unknown_alike = unknown_alike and vocabulary is not None
        # What is charged for a word that begins like no known one.
        self._unknown_price = unknown_score + weight * unknown_log_prob
        self._known = None if vocabulary is None else frozenset(vocabulary)
        # Labels that end a word before they begin: " ", " the"; and those that end it with letters of their own.
        spaced = [label is not None and label.startswith(" ") for label in labels]
        self._ends_word = np.array(spaced)
        self._headed = frozenset(i for i, label in enumerate(labels) if label and " " in label and not spaced[i])
        self._batched = isinstance(model, BatchedWordModel)
        self._rows: dict[str, Float64s] = {}
        self._finished: dict[tuple[Any, str], tuple[float, Any]] = {}
        # Every beginning of a known word.
        self._begun: frozenset[str] | None = None
        if vocabulary is not None:
            self._begun = frozenset(word[:length] for word in vocabulary for length in range(1, len(word) + 1))

    @property
    def begin(self) -> Hashable:
        """No word yet, and nothing begun."""
        return (None if self.model is None else self.model.begin, "")

    def prepare(self, keys: Sequence[Any]) -> None:
        """Have the language model find out about the words these keys would end, all at once."""
        if self._batched:
            pairs = dict.fromkeys((state, begun) for state, begun in keys if begun and self._allowed(begun))
            cast(BatchedWordModel, self.model).prefetch([pair for pair in pairs if pair not in self._finished])

    def _is_known(self, word: str) -> bool:
        return word in self._known if self._known is not None else self.model is None or self.model.knows(word)

    def _allowed(self, word: str) -> bool:
        return self.unknown_score > -math.inf or self._is_known(word)

    def _charged(self, begun: str) -> float:
        """What is charged for a word begun like that."""
        if not begun or self._begun is None or begun in self._begun:
            return 0.0
        return self._unknown_price

    def _word(self, state: Any, word: str) -> tuple[float, Any]:
        """What a finished word scores, and the state after it."""
        if not self._allowed(word):
            return -math.inf, state
        total = self.word_score
        if not self._is_known(word):
            total += self.unknown_score
        if self.model is not None:
            log_prob, state = self.model.score(state, word)
            total += self.weight * log_prob
        return total, state

    def rows(self, keys: Sequence[Any]) -> Float64s:
        """What each label adds."""
        spelling_NV = np.stack([self._spelling_row(begun) for _, begun in keys])
        return self._with_ends(keys, spelling_NV, range(len(self.labels)), self._ends_word)

    def some(self, key: Any, labels: Sequence[int]) -> Float64s:
        """What each of these labels adds."""
        own = list(labels)
        row: Float64s = self._with_ends([key], self._spelling(key[1], own)[None], own, self._ends_word[own])[0]
        return row

    def _with_ends(
        self, keys: Sequence[Any], spelling_NC: Float64s, labels: Sequence[int], ends_word: NDArray[np.bool_]
    ) -> Float64s:
        """What labels add by how they spell words, and by the words they end."""
        ends_N = np.array([self._finish(state, begun)[0] for state, begun in keys])
        rows_NC = spelling_NC + np.where(ends_word, ends_N[:, None], 0.0)
        headed = [(place, str(self.labels[i]).partition(" ")[0]) for place, i in enumerate(labels) if i in self._headed]
        for place, head in headed:
            rows_NC[:, place] += [self._finish(state, begun + head)[0] for state, begun in keys]
        return rows_NC

    def _spelling_row(self, begun: str) -> Float64s:
        row = self._rows.get(begun)
        if row is None:
            if len(self._rows) * len(self.labels) > _MAX_CELLS // 10:
                self._rows.clear()
            row = self._rows[begun] = self._spelling(begun, range(len(self.labels)))
        return row

    def _spelling(self, begun: str, labels: Sequence[int]) -> Float64s:
        """What labels add to what is charged for words that are begun, whatever was said before."""
        charged = self._charged(begun)
        row = np.zeros(len(labels))
        for place, i in enumerate(labels):
            label = self.labels[i]
            if label is None:
                row[place] = -math.inf
            else:
                _, space, rest = label.partition(" ")
                row[place] = self._charged(rest if space else begun + label) - charged
        return row

    def _finish(self, state: Any, begun: str) -> tuple[float, Any]:
        """What the end of a word adds, and the state after it; nothing where none is begun."""
        if not begun:
            return 0.0, state
        if self.unknown_alike and not self._is_known(begun):
            begun = _SOME_UNKNOWN_WORD
        found = self._finished.get((state, begun))
        if found is None:
            if len(self._finished) > _MAX_KEPT:
                self._finished.clear()
            found = self._finished[state, begun] = self._word(state, begun)
        return found

    def advance(self, key: Any, label: int) -> Hashable:
        """The key after a label."""
        state, begun = key
        text = self.labels[label]
        assert text is not None
        head, space, rest = text.partition(" ")
        if space:
            state = self._finish(state, begun + head)[1]
        begun = rest if space else begun + text
        if begun and self.unknown_alike and self._begun is not None and begun not in self._begun:
            begun = _SOME_UNKNOWN_WORD
        return (state, begun)

    def end(self, key: Any) -> float:
        """The last word, and the end."""
        state, begun = key
        total, state = self._finish(state, begun)
        return total - self._charged(begun) + (0.0 if self.model is None else self.weight * self.model.end(state))


class Hotwords(Automaton):
    """A bonus for phrases that are expected, a character at a time, taken back where one is not finished.

    A phrase counts where it begins and ends with a word. Where one phrase begins another, the longer adds to the
    shorter one's bonus; of phrases that overlap otherwise, the one begun first counts.

    Args:
        labels: see `Words`.
        phrases: what to expect.
        bonus: for each character, the space at the end included.
    """

    def __init__(self, labels: Sequence[str | None], phrases: Sequence[str], *, bonus: float) -> None:
        self.labels, self.bonus = labels, bonus
        # A phrase with the space that shows its end.
        self._phrases = {" ".join(phrase.split()) + " " for phrase in phrases if phrase.split()}
        self._begun = {phrase[:n] for phrase in self._phrases for n in range(len(phrase) + 1)}
        if not self._phrases:
            raise LanguageModelError("decoder.hotwords", "holds no word", "give phrases, or leave it empty")

    # The key is the text since some word's beginning, as far as it begins a phrase; None within another word. Of its
    # characters those after the last whole phrase are on credit.

    @property
    def begin(self) -> Hashable:
        """At the beginning of a word, and of no phrase."""
        return ""

    def _credit(self, key: str | None) -> float:
        if not key:
            return 0.0
        earned = max((len(key[:n]) for n in range(len(key), 0, -1) if key[:n] in self._phrases), default=0)
        return self.bonus * (len(key) - earned)

    def _feed(self, key: str | None, character: str) -> tuple[str | None, float]:
        """The key after a character, and what that adds to what is earned and on credit."""
        before = self._credit(key)
        after: str | None
        if key is None:
            after = "" if character == " " else None
        else:
            after = key + character
            while after is not None and after not in self._begun:
                _, space, rest = after.partition(" ")
                after = rest if space else None
        grown = key is not None and after == key + character
        earned = self.bonus * self._earned(after) if grown and after in self._phrases else 0.0
        return after, earned + self._credit(after) - before

    def _earned(self, phrase: str | None) -> int:
        """Characters of a finished phrase that no shorter one within it has been paid for."""
        assert phrase is not None
        shorter = max((n for n in range(len(phrase)) if phrase[:n] in self._phrases), default=0)
        return len(phrase) - shorter

    def _through(self, key: str | None, text: str) -> tuple[str | None, float]:
        total = 0.0
        for character in text:
            if character == " " and key is not None and (not key or key.endswith(" ")):
                continue
            key, added = self._feed(key, character)
            total += added
        return key, total

    def rows(self, keys: Sequence[Any]) -> Float64s:
        """What each label adds."""
        return np.stack([self.some(key, range(len(self.labels))) for key in keys])

    def some(self, key: Any, labels: Sequence[int]) -> Float64s:
        """What each of these labels adds."""
        texts = [self.labels[i] for i in labels]
        return np.array([-math.inf if text is None else self._through(key, text)[1] for text in texts])

    def advance(self, key: Any, label: int) -> Hashable:
        """The key after a label."""
        text = self.labels[label]
        assert text is not None
        return self._through(key, text)[0]

    def end(self, key: Any) -> float:
        """As a space, which ends a word; what is then on credit is given back."""
        key, total = self._through(key, " ")
        return total - self._credit(key)


class LabelBonus(Automaton):
    """A bonus for each label, against texts that are too short."""

    def __init__(self, labels: Sequence[str | None], *, bonus: float) -> None:
        self._row = np.array([-math.inf if label is None else bonus for label in labels])

    @property
    def begin(self) -> Hashable:
        """There is one state."""
        return None

    def rows(self, keys: Sequence[Any]) -> Float64s:
        """The bonus."""
        return np.tile(self._row, (len(keys), 1))

    def advance(self, key: Any, label: int) -> Hashable:
        """The same."""
        return None

    def end(self, key: Any) -> float:
        """Nothing."""
        return 0.0


class Fusion:
    """The sum of several automata, as tables that a search gathers from.

    Args:
        parts: the automata; none of them scores nothing.
        size: labels of the vocabulary.
        device: where the search runs.
    """

    def __init__(self, parts: Sequence[Automaton], *, size: int, device: torch.device | str = "cpu") -> None:
        self.parts, self.size, self.device = list(parts), size, torch.device(device)
        self._forget()

    def _forget(self) -> None:
        self._keys: list[tuple[Hashable, ...]] = []
        self._rows_SV = torch.zeros(0, self.size, device=self.device)
        self._nexts_SV = torch.zeros(0, self.size, dtype=torch.int64, device=self.device)
        self._ends: dict[int, float] = {}
        begin = tuple(part.begin for part in self.parts)
        self._states: dict[tuple[Hashable, ...], int] = {begin: 0}
        self._add([begin])

    def begin(self) -> int:
        """The state before the first label. Tables that have grown too large are begun anew."""
        if len(self._keys) * self.size > _MAX_CELLS:
            self._forget()
        return 0

    def rows(self, states: Tensor) -> Tensor:
        """What each label would add after these states (int64 on the device): their shape and ``V``."""
        return self._rows_SV[states]

    def ends(self, states: Tensor) -> Tensor:
        """What the end of the text adds after these states."""
        flat = states.flatten().tolist()
        for state in set(flat) - self._ends.keys():
            total = sum(part.end(own) for part, own in zip(self.parts, self._keys[state], strict=True))
            self._ends[state] = -math.inf if math.isnan(total) else total
        return torch.tensor([self._ends[state] for state in flat], device=self.device).view(states.shape)

    def nexts(self, states: Tensor, labels: Tensor) -> Tensor:
        """The states after these labels; a label below 0 leaves a state as it is."""
        nexts = torch.where(labels < 0, states, self._nexts_SV[states, labels.clamp(min=0)])
        unseen = nexts < 0
        if bool(unseen.any()):
            nexts[unseen] = self._explore(states[unseen], labels[unseen])
        return nexts

    def _explore(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """The states after labels that have not followed these states before."""
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
        first = len(self._keys)
        self._keys += keys
        rows = np.zeros((len(keys), self.size))
        for part, *own in zip(self.parts, *keys, strict=True):
            part.prepare(own)
            rows += part.rows(own)
        if len(self._keys) > len(self._rows_SV):
            room = max(256, 2 * len(self._keys))
            self._rows_SV = _grown(self._rows_SV, room, 0.0)
            self._nexts_SV = _grown(self._nexts_SV, room, -1)
        last = len(self._keys)
        # What is forbidden already is charged without end, and endless less endless is no number.
        rows[np.isnan(rows)] = -math.inf
        self._rows_SV[first:last] = torch.from_numpy(rows).to(self.device, torch.float32)


def _grown(table: Tensor, rows: int, fill: float) -> Tensor:
    grown = table.new_full((rows, *table.shape[1:]), fill)
    grown[: len(table)] = table
    return grown


class FusionScorer:
    """A fusion as a `Scorer` of an autoregressive search.

    Args:
        fusion: over the decoder's vocabulary.
        rows: beams of all utterances.
    """

    def __init__(self, fusion: Fusion, *, rows: int) -> None:
        self.fusion = fusion
        self._states_N = torch.full((rows,), fusion.begin(), device=fusion.device)

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """What each token adds, the end among them."""
        scores_NV = self.fusion.rows(self._states_N).clone()
        scores_NV[:, end_id] = self.fusion.ends(self._states_N)
        return scores_NV.to(log_probs_NV.dtype)

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """The states after the tokens chosen."""
        states_N = self._states_N[rows_N]
        # A beam that is out of the question, or has ended, goes nowhere.
        allowed_N = self.fusion.rows(states_N).gather(1, tokens_N[:, None])[:, 0] > -math.inf
        self._states_N = self.fusion.nexts(states_N, torch.where(allowed_N, tokens_N, -1))

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._states_N = self._states_N[rows_N]


class SparseAutomaton(Automaton, Protocol):
    """An automaton that can be asked about some labels only."""

    def some(self, key: Any, labels: Sequence[int]) -> Float64s:
        """What each of these labels would add after this key."""


class CandidateScorer:
    """Automata over a vocabulary too large for tables, as a `Scorer`: of each beam's likeliest tokens only.

    Args:
        parts: the automata, over all tokens spelt as text; tokens that spell nothing have "".
        rows: beams of all utterances.
        candidates: so many of the decoder's likeliest tokens are scored, and the end; the others are out.
    """

    def __init__(self, parts: Sequence[SparseAutomaton], *, rows: int, candidates: int) -> None:
        self.parts, self.candidates = list(parts), candidates
        self._keys: list[tuple[Hashable, ...]] = [tuple(part.begin for part in parts)] * rows
        self._kept: dict[tuple[tuple[Hashable, ...], tuple[int, ...]], Float64s] = {}

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """What the candidates add; minus infinity for every other token but the end."""
        for place, part in enumerate(self.parts):
            part.prepare([key[place] for key in self._keys])
        tokens_NC = log_probs_NV.topk(min(self.candidates, log_probs_NV.shape[1]), dim=1).indices
        added = [self._added(key, tuple(own)) for key, own in zip(self._keys, tokens_NC.tolist(), strict=True)]
        added_NC = torch.from_numpy(np.stack(added)).to(log_probs_NV.device, log_probs_NV.dtype)
        scores_NV = torch.full_like(log_probs_NV, -torch.inf).scatter_(1, tokens_NC, added_NC)
        ends = [sum(part.end(own) for part, own in zip(self.parts, key, strict=True)) for key in self._keys]
        scores_NV[:, end_id] = torch.tensor(ends, device=log_probs_NV.device, dtype=log_probs_NV.dtype)
        return scores_NV

    def _added(self, key: tuple[Hashable, ...], labels: tuple[int, ...]) -> Float64s:
        found = self._kept.get((key, labels))
        if found is None:
            parts = zip(self.parts, key, strict=True)
            found = np.nan_to_num(sum(part.some(own, labels) for part, own in parts), nan=-math.inf, neginf=-math.inf)
            self._kept[key, labels] = found
        return found

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """The keys after the tokens chosen."""
        self._kept.clear()
        chosen = zip(rows_N.tolist(), tokens_N.tolist(), strict=True)
        self._keys = [
            tuple(part.advance(own, token) for part, own in zip(self.parts, self._keys[row], strict=True))
            for row, token in chosen
        ]

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._keys = [self._keys[row] for row in rows_N.tolist()]
