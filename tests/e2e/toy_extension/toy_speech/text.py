"""A tokenizer and a decoder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ssl_asr.decoding.ctc import CtcSearch, greedy_search
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID, Tokenizer, Utterance


class WordTokenizer:
    """One label for each word of the train split."""

    unit = "words"

    def __init__(self, *, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(self.words, start=FIRST_LABEL_ID)}

    @property
    def vocab_size(self) -> int:
        return len(self.words) + FIRST_LABEL_ID

    def encode(self, utterance: Utterance) -> list[int]:
        return [self._ids.get(word, UNKNOWN_ID) for word in utterance.text.split()]

    def unseen(self, utterance: Utterance) -> list[str]:
        return [word for word in utterance.text.split() if word not in self._ids]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i - FIRST_LABEL_ID] for i in ids if i not in (BLANK_ID, UNKNOWN_ID))

    def labels(self) -> list[str | None]:
        return [None, None, *(f" {word}" for word in self.words)]

    def state(self) -> dict[str, Any]:
        return {"kind": "toy_speech.text.WordTokenizer", "words": self.words}


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of the train split."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})

    def build(self, *, train: Iterable[Utterance], checkpoint: Any) -> Tokenizer:
        return WordTokenizer(words=sorted({word for utterance in train for word in utterance.text.split()}))


@dataclass(frozen=True, kw_only=True)
class ToyGreedy:
    """Greedy search that keeps at most ``most`` labels."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    n_best: ClassVar[int] = 1

    most: int

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        def search(log_probs_BFV: Any, frame_lengths_B: Any) -> Any:
            found = greedy_search(log_probs_BFV, frame_lengths_B)
            for hypotheses in found:
                del hypotheses[0].tokens[self.most :]
                del hypotheses[0].frames[self.most :]
            return found

        return search

    def rescorer(self) -> None:
        return None
