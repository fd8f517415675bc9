"""Subtitle cues from timed words: where cues and lines end, and how long a cue is shown.

Let ``w_1 … w_n`` be the words of a track. A cue is a run ``w_i … w_j-1`` on at most ``max_line_count`` lines, none
wider than ``max_line_width``, spoken in at most ``max_cue_s``. The cheapest division into cues is chosen:

    best(j)         = min over i of  best(i) + cue(i, j) + cut(j)                    words before j are divided
    cue(i, j)       = CUE + lines(i, j) + short(i, j) + fast(i, j) + pauses inside
    lines(i, j)     = 0 if w_i … w_j-1 fit on one line, otherwise  min over l of  layer(i, j, l)
    layer(i, j, 1)  = slack(i, j)
    layer(i, j, l)  = min over k of  layer(i, k, l-1) + LINE + cut(k) / 2 + slack(k, j)     line l is w_k … w_j-1

``cut(k)`` is the cost of a break between ``w_k-1`` and ``w_k``. It is 0 after a sentence, and low at the end of a
segment, after a comma, in a pause, and before a conjunction or preposition. It is high after an article or a
preposition, and highest where no space is written. ``slack`` grows with the unused width of a line, so lines are of
similar width. ``short`` and ``fast`` grow as a cue is shown for less than `SHORTEST_MS` or exceeds the reading speed.

A cue is shown while it is spoken, and longer if there is time after it: up to the reading speed, up to `SHORTEST_MS`,
and up to the next cue if that one is near. Two cues are `GAP_MS` apart. Where speech is faster than the reading speed,
cues are moved by up to half a second, see `ssl_asr.inference.formats.reading_time`. What remains too fast is shown as
long as possible. No word is left out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.formats.function_words import TITLES, FunctionWords, function_words
from ssl_asr.inference.formats.reading_time import Span, with_reading_time
from ssl_asr.inference.formats.text import broken, characters, may_part, width
from ssl_asr.inference.formats.timeline import Track, on_grid, shared, split_at_spaces, tracks
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Milliseconds, Word

DEFAULT_STYLE = SubtitleStyle()
# Two frames at 25 frames a second.
GAP_MS: Milliseconds = 80
SHORTEST_MS: Milliseconds = 1000
# A cue that ends this close to the next one is shown up to it, so that the screen does not flicker.
_NEAR_MS: Milliseconds = 500
# A cue should not go on after a longer pause.
_PAUSE_MS: Milliseconds = 800

# Costs. Only their order and rough size matter.
_CUE, _LINE = 3.0, 1.0
_AFTER_SENTENCE, _AFTER_SEGMENT, _AFTER_CLAUSE, _BEFORE_LEADING, _ANYWHERE, _AFTER_BINDING = (
    0.0,
    1.0,
    2.0,
    5.0,
    8.0,
    16.0,
)
_INSIDE_TEXT = 200.0
_INSIDE_PAUSE, _SLACK, _SHORT, _FAST = 20.0, 2.0, 8.0, 10.0

_QUOTES = "\"'”’»›)]}）」』】〉》"
_SENTENCE_ENDS = tuple(".?!…。！？．؟۔।॥។၊။")
_CLAUSE_ENDS = tuple(",;:–—、，；：،؛")


@dataclass(frozen=True, slots=True)
class Timed:
    """A part of a cue's text, with its times in milliseconds. See `ssl_asr.types.Word` for ``spaced``."""

    text: str
    start: Milliseconds
    end: Milliseconds
    confidence: float = 1.0
    spaced: bool = True


@dataclass(frozen=True, slots=True)
class Cue:
    """A subtitle.

    Attributes:
        start, end: When it is shown, in milliseconds.
        lines: Words of each line.
        is_too_fast: Whether the speech leaves less time than it takes to read the cue.
    """

    start: Milliseconds
    end: Milliseconds
    lines: tuple[tuple[Timed, ...], ...]
    is_too_fast: bool = False

    @property
    def words(self) -> tuple[Timed, ...]:
        """All words."""
        return tuple(word for line in self.lines for word in line)

    @property
    def texts(self) -> list[str]:
        """Text of each line."""
        return [joined(line) for line in self.lines]

    @property
    def text(self) -> str:
        """The text on one line."""
        return joined(self.words)


def joined(words: Sequence[Timed]) -> str:
    """Text of words, with spaces where they are written."""
    return "".join(f" {word.text}" if word.spaced else word.text for word in words).strip()


def track_cues(track: Track, style: SubtitleStyle = DEFAULT_STYLE) -> list[Cue]:
    """Cues of a track, in order and without overlap. Every word of the track is in one of them.

    A word that is wider than a line is broken, and a longer sound than a cue's limit is cut at its end.
    """
    parts = [[unit for part in split_at_spaces([word]) for unit in _fitting(part, style)] for word in track.words()]
    units = [unit for own in parts for unit in own]
    # Number of units up to each word.
    counts = [0, *accumulate(map(len, parts))]
    grid = on_grid([(unit.start, unit.end) for unit in units], 1000, until=track.end)
    longest = _longest_ms(style)
    timed = [
        Timed(unit.text, start, min(end, start + longest), unit.confidence, unit.spaced)
        for unit, (start, end) in zip(units, grid, strict=True)
    ]
    segment_ends = {counts[end] for end in track.segment_ends()}
    row_ends = {counts[end] for end in track.row_ends()}
    return _Division(timed, segment_ends, row_ends, track, style).cues()


def cues_of(rows: Sequence[Prediction], style: SubtitleStyle = DEFAULT_STYLE) -> list[Cue]:
    """Cues of each recording, in the order of time. Only cues of several channels or speakers overlap."""
    by_path: dict[str, list[Cue]] = {}
    for track in tracks(rows):
        by_path.setdefault(track.path, []).extend(track_cues(track, style))
    return [cue for cues in by_path.values() for cue in sorted(cues, key=lambda cue: cue.start)]


def _longest_ms(style: SubtitleStyle) -> Milliseconds:
    """Limit of a cue in whole centiseconds, the unit of ASS."""
    return math.floor(style.max_cue_s * 100 + 1e-6) * 10


def _fitting(word: Word, style: SubtitleStyle) -> list[Word]:
    """A word in parts that fit into a line, and into the time of a cue if its script has no spaces."""
    parts = characters(word.text)
    if len(parts) > 1 and (width(word.text) > style.max_line_width or word.end - word.start > style.max_cue_s):
        return [piece for part in shared(word, parts) for piece in _fitting(part, style)]
    if width(word.text) <= style.max_line_width:
        return [word]
    return shared(word, broken(word.text, style.max_line_width))


Lines = tuple[float, tuple[int, ...]]
"""Cost of a cue's lines, and the words that begin its lines after the first."""


class _Division:
    """The cheapest division of a track's words into cues and lines; see the module's text."""

    def __init__(
        self, words: list[Timed], ends: set[int], row_ends: set[int], track: Track, style: SubtitleStyle
    ) -> None:
        self.words, self.style = words, style
        self.longest = _longest_ms(style)
        self.until = round(1000 * track.end)
        # Columns up to each word, spaces included.
        self.columns = [0, *accumulate(width(word.text) + word.spaced for word in words)]
        spoken = [_spoken(word.text) for word in words]
        known = function_words(track.lang, spoken)
        self.cut = [_cut(words, spoken, place, ends, known) for place in range(len(words) + 1)]
        apart = [
            place in row_ends or words[place].start - words[place - 1].end > _PAUSE_MS for place in range(1, len(words))
        ]
        self.last_lines = [self._last_lines(end) for end in range(len(words) + 1)]
        # Long pauses and ends of utterances before each word.
        self.pauses = [0, 0, *accumulate(apart)]

    def cues(self) -> list[Cue]:
        """Cues of all words."""
        count = len(self.words)
        best = [0.0] + [math.inf] * count
        chosen: list[tuple[int, tuple[int, ...]]] = [(0, ())] * (count + 1)
        for first in range(count):
            for end, cost, breaks in self._layouts(first):
                total = best[first] + cost + self._cue_cost(first, end) + self.cut[end]
                if total < best[end]:
                    best[end], chosen[end] = total, (first, breaks)
        made: list[tuple[int, int, tuple[int, ...]]] = []
        end = count
        while end > 0:
            first, breaks = chosen[end]
            made.append((first, end, breaks))
            end = first
        made.reverse()
        spans = [Span(self.words[first].start, *self._shown(first, end)) for first, end, _ in made]
        until = self._times(made[-1][0], count)[1] if made else 0
        moved = with_reading_time(spans, gap=GAP_MS, longest=self.longest, until=until)
        return [self._cue(*part, span) for part, span in zip(made, moved, strict=True)]

    def _width(self, first: int, end: int) -> int:
        """Columns of words on one line, without the space before the first."""
        return self.columns[end] - self.columns[first] - self.words[first].spaced

    def _slack(self, first: int, end: int) -> float:
        return _SLACK * (1 - self._width(first, end) / self.style.max_line_width) ** 2

    def _last_lines(self, end: int) -> list[tuple[int, float]]:
        """First word and cost of each line that can end a cue of several lines, the shortest line first."""
        found: list[tuple[int, float]] = []
        for start in range(end - 1, 0, -1):
            if self._width(start, end) > self.style.max_line_width:
                break
            found.append((start, _LINE + self.cut[start] / 2 + self._slack(start, end)))
        return found

    def _layouts(self, first: int) -> Iterator[tuple[int, float, tuple[int, ...]]]:
        """For each possible end of a cue: the cost of its best lines, and the words that begin its other lines."""
        limit, count = self.style.max_line_width, self.style.max_line_count
        # layers[l][j]: cost of words before j on l + 1 lines, and where the lines after the first begin.
        layers: list[dict[int, Lines]] = [{}]
        for end in range(first + 1, len(self.words) + 1):
            if self.words[end - 1].end - self.words[first].start > self.longest:
                return
            if self._width(first, end) <= limit:
                # Words that fit on one line are on one line, whatever its width.
                layers[0][end] = (self._slack(first, end), ())
                yield end, 0.0, ()
            if len(layers) < count and end - first > 1:
                layers.append({})
            for number in range(1, len(layers)):
                # The last layer begins no other line.
                if number < count - 1 or end not in layers[0]:
                    self._add_line(layers[number - 1], layers[number], first, end)
            fits = [layer[end] for layer in layers if end in layer]
            if not fits:
                return
            if end not in layers[0]:
                yield end, *min(fits)

    def _add_line(self, before: dict[int, Lines], layer: dict[int, Lines], first: int, end: int) -> None:
        """The cheapest way to put the words before ``end`` on one more line than in the layer before."""
        best, chosen = math.inf, 0
        for start, cost in self.last_lines[end]:
            if start <= first:
                break
            if start in before and before[start][0] + cost < best:
                best, chosen = before[start][0] + cost, start
        if chosen:
            layer[end] = best, (*before[chosen][1], chosen)

    def _times(self, first: int, end: int) -> tuple[Milliseconds, Milliseconds]:
        """When a cue that is not moved ends, and when it could end at the latest."""
        start, spoken = self.words[first].start, self.words[end - 1].end
        latest = start + self.longest
        if end < len(self.words):
            room = self.words[end].start - start
            # A cue that is not longer than two gaps is shown for half of its time.
            latest = min(latest, start + max(room - GAP_MS, (room + 1) // 2))
        else:
            latest = min(latest, max(spoken, self.until))
        wanted = max(spoken, start + self._reading(first, end), start + SHORTEST_MS)
        if end < len(self.words) and self.words[end].start - wanted < _NEAR_MS:
            wanted = self.words[end].start
        return min(wanted, latest), latest

    def _reading(self, first: int, end: int) -> Milliseconds:
        return math.ceil(1000 * self._width(first, end) / self.style.max_characters_per_s)

    def _shown(self, first: int, end: int) -> tuple[Milliseconds, Milliseconds]:
        """When a cue ends, and how long it takes to read."""
        return self._times(first, end)[0], min(self._reading(first, end), self.longest)

    def _cue_cost(self, first: int, end: int) -> float:
        """Cost of a cue besides its lines."""
        shown = self._times(first, end)[0] - self.words[first].start
        short = _SHORT * max(0.0, 1 - shown / SHORTEST_MS)
        speed = 1000 * self._width(first, end) / shown
        fast = _FAST * min(2.0, max(0.0, speed / self.style.max_characters_per_s - 1))
        return _CUE + short + fast + _INSIDE_PAUSE * (self.pauses[end] - self.pauses[first + 1])

    def _cue(self, first: int, end: int, breaks: tuple[int, ...], shown: Span) -> Cue:
        own = self.words[first:end]
        # The gap to the next cue may begin before the last words do, and a cue that is moved may begin after the first.
        times = [(max(word.start, shown.start) / 1000, min(word.end, shown.end) / 1000) for word in own]
        spans = on_grid(times, 1000, until=shown.end / 1000)
        words = [replace(word, start=start, end=stop) for word, (start, stop) in zip(own, spans, strict=True)]
        places = [0, *(place - first for place in breaks), len(words)]
        lines = tuple(tuple(words[start:stop]) for start, stop in pairwise(places))
        return Cue(shown.start, shown.end, lines, shown.is_too_fast)


def _spoken(text: str) -> str:
    return text.lower().strip(f".,;:!?…{_QUOTES}")


def ending(text: str) -> Literal["abbreviation", "sentence", "clause", ""]:
    """What a written word ends, by the punctuation at its end.

    Example:
        >>> ending("end.”"), ending("Mr."), ending("but,"), ending("so")
        ('sentence', 'abbreviation', 'clause', '')
    """
    bare = text.rstrip(_QUOTES) or text
    if bare.endswith(".") and (_spoken(text) in TITLES or (len(bare) == 2 and bare[0].isupper())):
        # "Mr.", or an initial.
        return "abbreviation"
    if bare.endswith(_SENTENCE_ENDS):
        return "sentence"
    return "clause" if bare.endswith(_CLAUSE_ENDS) else ""


def _cut(words: Sequence[Timed], spoken: Sequence[str], place: int, ends: set[int], known: FunctionWords) -> float:
    """Cost of parting the words before and from ``place``."""
    if place in (0, len(words)):
        return 0.0
    before, after = words[place - 1], words[place]
    if not after.spaced and not may_part(before.text[-1], after.text[0]):
        return _INSIDE_TEXT
    pause = min(1.0, max(0, after.start - before.end) / _PAUSE_MS)
    word, kind = spoken[place - 1], ending(before.text)
    if kind == "abbreviation":
        return _AFTER_BINDING
    if kind == "sentence":
        return _AFTER_SENTENCE
    if kind == "clause":
        return _AFTER_CLAUSE - pause
    if word in known.binding or word in known.leading:
        return _AFTER_BINDING - 4 * pause
    if place in ends:
        return _AFTER_SEGMENT
    return (_BEFORE_LEADING if spoken[place] in known.leading else _ANYWHERE) - 4 * pause
