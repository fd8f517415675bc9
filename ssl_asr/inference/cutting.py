"""Cut long recordings with one text into utterances, by a transcript with times.

The transcript and the text are aligned word by word. A cut lies between words that are the same in both, in a pause of
the waveform if there is one, because times of words are not exact::

    text          we were at  sea .  The wind  had  changed and ...
    transcript    we were a   sea     the wind      changed and ...       words with times
    same           |   |       |       |   |           |     |
    cut                                ^ in the middle of the pause

So a model that makes errors finds the times, and parts whose text is not what is said are found and left out.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from ssl_asr.data.folders import printable
from ssl_asr.data.formats.rows import Row
from ssl_asr.data.manifest import pack_rows
from ssl_asr.data.preparation import Corpus, untimed
from ssl_asr.data.vad import Span
from ssl_asr.decoding.pauses import sounds
from ssl_asr.decoding.text_alignment import Written
from ssl_asr.inference import model as inference_model
from ssl_asr.inference.batches import transcribe_manifests
from ssl_asr.inference.formats.cues import ending
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.model import InferenceOptions
from ssl_asr.inference.recording import Recording
from ssl_asr.inference.running import RunOptions
from ssl_asr.metrics.edit import align
from ssl_asr.training.ctc import utterance_words
from ssl_asr.training.module import TranscribeOptions
from ssl_asr.types import Seconds, Skip, Utterance, Word

# An utterance begins and ends at most this long before and after its words.
_MARGIN_S: Seconds = 0.5
# Pauses are measured in blocks of this length.
_BLOCK_S: Seconds = 600.0
# A longer pause is no better place for a cut.
_PAUSE_S: Seconds = 0.8
# Costs of a cut: by what the word before it ends, in a short pause, and without a pause in the waveform, which is worse
# than further cuts elsewhere. And of an utterance. Only their order and rough size matter.
_AFTER = {"sentence": 0.0, "clause": 2.0, "": 4.0, "abbreviation": 8.0}
_SHORT_PAUSE, _NO_PAUSE, _UTTERANCE = 2.0, 20.0, 1.0
# Cost of an utterance that is too long because its text gives no place for a cut.
_TOO_LONG = 1e6
# Share of wrong words above which a text is not that of the audio.
_MOST_WRONG = 0.5


@dataclass(frozen=True, slots=True)
class Piece:
    """An utterance of a recording.

    Attributes:
        first, last: Its words in the text, ``[first, last)``.
        start, end: Seconds of the recording.
        wrong: Number of substituted, inserted and deleted words of the transcript.
    """

    first: int
    last: int
    start: Seconds
    end: Seconds
    wrong: int

    def fault(self, longest_s: Seconds) -> tuple[str, str] | None:
        """Reason and detail if the piece cannot be used."""
        count = self.last - self.first
        if self.wrong > _MOST_WRONG * count:
            return "text_mismatch", f"{self.wrong} errors in {count} words between the text and what the model hears"
        if self.end - self.start > longest_s:
            what = "no pause in it is sure, because the text differs from what the model hears"
            return "too_long", f"{self.end - self.start:.1f} s are more than longest_s={longest_s:g}: {what}"
        return None


@dataclass(frozen=True, slots=True)
class _Place:
    """A place for a cut, before word ``word`` of the text: end of the piece before, start of the next, and cost."""

    word: int
    end: Seconds
    start: Seconds
    cost: float


def cut(
    words: Sequence[Written],
    heard: Sequence[Word],
    pauses: Sequence[Span],
    *,
    duration: Seconds,
    longest_s: Seconds,
) -> list[Piece]:
    """The utterances of a recording, in order, which together have all words of its text.

    Args:
        words: The text.
        heard: The transcript.
        pauses: Start and end of each pause in the waveform, in order.
        duration: Seconds of the recording.
        longest_s: Longest utterance. It is exceeded where no cut is possible, see `Piece.fault`.
    """
    if not words:
        return []
    matches, wrong, inserted = _matched(words, heard)
    places = _places(words, matches, _Between(heard, pauses, duration))
    best: list[tuple[float, int]] = [(0.0, 0)]
    for at in range(1, len(places)):
        costs = [(best[at - 1][0] + _TOO_LONG, at - 1)]
        for before in range(at - 1, -1, -1):
            length = places[at].end - places[before].start
            if length > longest_s:
                break
            costs.append((best[before][0] + _UTTERANCE + places[at].cost, before))
        best.append(min(costs))
    chosen = [len(places) - 1]
    while chosen[-1] > 0:
        chosen.append(best[chosen[-1]][1])
    found = []
    for one, other in pairwise(places[at] for at in reversed(chosen)):
        # Words that are heard beside a cut are in no piece, unless the end of the text is not sure.
        first = one.word + (one.word > 0 or matches[0] is not None)
        last = other.word + (other.word == len(words) and matches[-1] is None)
        errors = sum(wrong[one.word : other.word]) + sum(inserted[first:last])
        found.append(Piece(one.word, other.word, one.start, other.end, errors))
    return found


def _key(text: str) -> str:
    """A word without case and punctuation, for comparison."""
    letters = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c)[0] in "LNM")
    return letters.casefold() or text


def _matched(words: Sequence[Written], heard: Sequence[Word]) -> tuple[list[int | None], list[int], list[int]]:
    """For each word of the text: the same word of the transcript, whether it is wrong; and words heard before it.

    The last list has one more item, for words after the text.
    """
    matches: list[int | None] = []
    wrong: list[int] = []
    inserted = [0] * (len(words) + 1)
    at = 0
    for operation, _, _ in align([_key(word.text) for word in words], [_key(word.text) for word in heard]):
        if operation == "ins":
            inserted[len(matches)] += 1
        else:
            matches.append(at if operation == "match" else None)
            wrong.append(operation != "match")
        at += operation != "del"
    return matches, wrong, inserted


class _Between:
    """Where utterances end and start between the words of a transcript."""

    def __init__(self, heard: Sequence[Word], pauses: Sequence[Span], duration: Seconds) -> None:
        self._heard, self._pauses, self.duration = heard, pauses, duration
        self._ends = [end for _, end in pauses]

    def _span(self, at: int) -> tuple[Span, bool]:
        """The longest pause between the middles of words ``at - 1`` and ``at``, and whether it is measured."""
        left = self._heard[at - 1] if at > 0 else Word("", 0.0, 0.0, 1.0)
        right = self._heard[at] if at < len(self._heard) else Word("", self.duration, self.duration, 1.0)
        first, last = (left.start + left.end) / 2, (right.start + right.end) / 2
        found: list[Span] = []
        for index in range(bisect_right(self._ends, first), len(self._pauses)):
            start, end = self._pauses[index]
            if start >= last:
                break
            found.append((max(start, first), min(end, last)))
        if found:
            return max(found, key=lambda span: span[1] - span[0]), True
        return (left.end, max(left.end, right.start)), False

    def end(self, at: int) -> Seconds:
        """Where an utterance ends whose last word this is."""
        (start, end), _ = self._span(at + 1)
        return start + min(_MARGIN_S, (end - start) / 2)

    def start(self, at: int) -> Seconds:
        """Where an utterance starts whose first word this is."""
        (start, end), _ = self._span(at)
        return end - min(_MARGIN_S, (end - start) / 2)

    def cost(self, left: int, right: int) -> float:
        """Cost of the pause between two words: none if it is long."""
        spans = [span[1] - span[0] for span, measured in map(self._span, range(left + 1, right + 1)) if measured]
        if not spans:
            return _SHORT_PAUSE + _NO_PAUSE
        return _SHORT_PAUSE * (1 - min(1.0, max(spans) / _PAUSE_S))


def _places(words: Sequence[Written], matches: Sequence[int | None], between: _Between) -> list[_Place]:
    """The start, all places where both sides are sure, and the end."""
    first, last = matches[0], matches[-1]
    places = [_Place(0, 0.0, 0.0 if first is None else between.start(first), 0.0)]
    for word in range(1, len(words)):
        left, right = matches[word - 1], matches[word]
        if left is None or right is None or not _sure(matches, word):
            continue
        cost = _AFTER[ending(words[word - 1].text)] + between.cost(left, right)
        end, start = between.end(left), between.start(right)
        if end > places[-1].start and start < between.duration:
            places.append(_Place(word, end, start, cost))
    end = between.duration if last is None else between.end(last)
    return [*places, _Place(len(words), end, end, 0.0)]


def _sure(matches: Sequence[int | None], word: int) -> bool:
    """Whether the two words on each side of a place are the same in a row, because a single one may be by chance."""
    pairs = [(word - 2, word - 1), (word, word + 1)]
    inside = [(a, b) for a, b in pairs if a >= 0 and b < len(matches)]
    return all(
        (one := matches[a]) is not None and (other := matches[b]) is not None and other == one + 1 for a, b in inside
    )


def pauses_of(recording: Recording) -> list[Span]:
    """Start and end of each pause in a recording, in order."""
    found: list[Span] = []
    start, total = 0.0, recording.utterance.duration
    while start < total:
        stretches = sounds(recording.part(start, min(_BLOCK_S, total - start)).waveform_T)
        edges = [(0.0, 0.0), *stretches] if start == 0 and stretches else stretches
        found += [(start + one[1], start + other[0]) for one, other in pairwise(edges) if other[0] > one[1]]
        start += _BLOCK_S
    return found


# For the command ----------------------------------------------------------------------------------------------------


def cut_long(
    corpus: Corpus, model: str, *, longest_s: Seconds, extensions: Sequence[str], console: Console | None
) -> None:
    """Cut the recordings of a corpus that are longer than ``longest_s`` and have one text without times.

    Args:
        corpus: Its rows, skips and notes are changed.
        model: As for `ssl_asr.inference.model.load_model`.
        longest_s: Longest utterance, in seconds.
        extensions: Packages besides this one whose classes the model may use.
        console: Shows progress; None shows nothing.

    Raises:
        CheckpointError: There is no such model.
        ConfigError: The model has no times of words.
    """
    long = untimed(corpus.rows, longest_s)
    if not long:
        corpus.notes.append(f"no recording without times is longer than {longest_s:g} s: model={model} is not used")
        return
    module = inference_model.load_model(model, InferenceOptions(extensions=tuple(extensions)))
    options = TranscribeOptions(confidence=module.confidence_measure("max_prob", required=True))
    manifest = pack_rows([_line(row, number) for number, row in enumerate(long)], Path())
    run = RunOptions(max_batch_s=None, num_workers=0, accelerator="auto", downmix="mean")
    long_form = LongForm(chunk_s=30.0, stride_s=4.0, batch_s=None)
    done = transcribe_manifests(
        module, {"all": manifest}, run=run, options=options, long_form=long_form, console=console, tables=False
    )
    heard = {prediction.id: prediction.words for prediction in done.predictions["all"]}
    unread = {skip.id: skip for skip in done.skips["all"]}
    pieces: dict[int, list[Row]] = {}
    for number, row in enumerate(long):
        skip = unread.get(str(number))
        if skip is not None:
            corpus.skips.append(replace(skip, id=printable(row.id), where=printable(row.where or row.audio)))
        pieces[id(row)] = [] if skip is not None else _cut_row(corpus, row, heard[str(number)], longest_s)
    corpus.rows = [piece for row in corpus.rows for piece in pieces.get(id(row), [row])]
    count = sum(map(len, pieces.values()))
    corpus.notes.append(f"{len(long)} recordings longer than {longest_s:g} s are cut into {count} utterances")


def _line(row: Row, number: int) -> dict[str, object]:
    line = row.plain(str)
    return {key: line[key] for key in ("audio_filepath", "duration", "text", "lang", "channel") if key in line} | {
        "id": str(number)
    }


def _cut_row(corpus: Corpus, row: Row, heard: Sequence[Word], longest_s: Seconds) -> list[Row]:
    """The utterances of a recording. Those that cannot be used become skips."""
    assert row.duration is not None
    lang = row.tags.get("lang")
    words = utterance_words(Utterance(row.id, row.audio, row.duration, row.text, lang=lang))
    kept = []
    whole = Utterance(row.id, row.audio, row.duration, offset=row.offset, channel=row.channel, where=row.where)
    for piece in cut(words, heard, pauses_of(Recording(whole)), duration=row.duration, longest_s=longest_s):
        text = "".join(f" {word.text}" if word.spaced else word.text for word in words[piece.first : piece.last])
        name = f"{row.id}@{piece.start:.3f}-{piece.end:.3f}"
        fault = piece.fault(longest_s)
        if fault is not None:
            where = printable(row.where or row.audio)
            corpus.skips.append(Skip(printable(name), where, fault[0], fault[1], piece.end - piece.start))
            continue
        start, length = round(piece.start, 3), round(piece.end - piece.start, 3)
        kept.append(replace(row, id=name, text=text.strip(), offset=start, duration=length, whole=False))
    return kept
