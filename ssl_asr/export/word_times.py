"""Compares the word times of an exported model in its runtime with those of this package.

Only the starts of words that directly follow another word are compared. Beside a pause, this package moves the ends of
words to the speech, and runtimes do not::

    ssl_asr   | the | rainbow |        | by |            the start of `rainbow` is compared
    runtime   | the | rainbow           | by | you |     words that only one side has are left out

Whisper is compared at 30 s, since runtimes time words in their own loop over windows.
"""

import difflib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from ssl_asr.data.dataset import collate
from ssl_asr.decoding.word_breaks import is_spoken
from ssl_asr.export.base import ExportModel, TimedWord
from ssl_asr.models.whisper import SAMPLES_PER_FRAME
from ssl_asr.training.ctc import CTCModule
from ssl_asr.training.module import TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Example, Seconds, Word

# Utterances whose words are compared.
MOST_TIMED = 20
# With fewer words, one or two that are hard to place would decide.
_LEAST_WORDS = 10
# Times are rounded by some runtimes.
_ROUNDING_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class TimeComparison:
    """Starts of words that both sides have.

    Attributes:
        utterances: Number of utterances.
        limit_s: Seconds per frame of the model, and at least those of Whisper.
        distances: Seconds between the start in this package and in the runtime, for each compared word.
    """

    utterances: int
    limit_s: Seconds
    distances: list[Seconds]

    @property
    def within(self) -> int:
        """Number of words that start within ``limit_s`` of each other."""
        return sum(one <= self.limit_s + _ROUNDING_S for one in self.distances)

    @property
    def median_s(self) -> Seconds:
        """Median distance. 0 without words."""
        return statistics.median(self.distances) if self.distances else 0.0

    @property
    def judged(self) -> bool:
        """Whether there are enough words to judge by, which is 10."""
        return len(self.distances) >= _LEAST_WORDS

    def agrees(self) -> bool:
        """Whether half of the words start within ``limit_s`` of each other, unlike those of wrong frames or heads.

        Also True if there are too few words to judge by.
        """
        return not self.judged or self.median_s <= self.limit_s + _ROUNDING_S

    def record(self) -> dict[str, Any]:
        """Plain data for ``export.json``."""
        return {
            "utterances": self.utterances,
            "words": len(self.distances),
            "judged": self.judged,
            "within": self.within,
            "limit_s": self.limit_s,
            "median_s": round(self.median_s, 4),
            "largest_s": round(max(self.distances, default=0.0), 4),
        }


@torch.inference_mode()
def compare_times(model: ExportModel, theirs: Iterable[list[TimedWord]], examples: Sequence[Example]) -> TimeComparison:
    """Compare the starts of words.

    Args:
        model: The model, with greedy search and the window of the runtime.
        theirs: Words of the runtime for each utterance.
        examples: The utterances.
    """
    module = model.module
    distances: list[Seconds] = []
    for example, words in zip(examples, theirs, strict=True):
        [hypothesis] = module.transcribe(collate([example]), options=TranscribeOptions(confidence="max_prob"))
        distances += distances_of(hypothesis.words or [], words, any_start=module.task_name == "ctc")
    limit_s = SAMPLES_PER_FRAME / SAMPLE_RATE
    if module.task_name == "ctc":
        # Words of less are lengthened, see `transcript`.
        limit_s = max(limit_s, cast(CTCModule, module).frame_s)
    return TimeComparison(utterances=len(examples), limit_s=limit_s, distances=distances)


def timed_examples(examples: Sequence[Example]) -> Sequence[Example]:
    """The utterances whose words are compared, at even distances."""
    return examples[:: max(1, len(examples) // MOST_TIMED)][:MOST_TIMED]


def distances_of(ours: Sequence[Word], theirs: Sequence[TimedWord], *, any_start: bool) -> list[Seconds]:
    """Distances of the starts of common words. ``any_start`` also compares words after a pause."""
    theirs = [word for word in theirs if is_spoken(word.text)]
    matcher = difflib.SequenceMatcher(
        None, [_key(word.text) for word in ours], [_key(word.text) for word in theirs], autojunk=False
    )
    found = []
    for block in matcher.get_matching_blocks():
        for own, other in zip(range(block.a, block.a + block.size), range(block.b, block.b + block.size), strict=True):
            follows = own > 0 and ours[own].start == ours[own - 1].end
            if any_start or follows:
                found.append(abs(ours[own].start - theirs[other].start))
    return found


def _key(text: str) -> str:
    """A word without the marks that runtimes attach to one word or the other."""
    return "".join(character for character in text if character.isalnum()) or text
