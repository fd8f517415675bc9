"""Segments of recordings: those of the model, or else words joined to phrases."""

from ssl_asr.inference.formats.cues import track_cues
from ssl_asr.inference.formats.text import clean, letters
from ssl_asr.inference.formats.timeline import Track, segments_of, timed_words
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Segment, Word, text_of


def segments_in(track: Track) -> list[Segment]:
    """Segments of a track with times in the recording, and with their words if words have times.

    A row without segments has the phrases of its subtitles, in whole words. A row without segments and words is one
    segment.
    """
    return [segment for row in track.rows for segment in segments_of(row) or _phrases(row, track)]


def _phrases(row: Prediction, track: Track) -> list[Segment]:
    words = timed_words(row)
    if not words:
        return []
    if not row.words and not any(segment.words for segment in row.segments):
        start, end = min(word.start for word in words), max(word.end for word in words)
        return [Segment(clean(row.hyp), start, end, 1.0)]
    found: list[Segment] = []
    own: list[Word] = []
    ahead, following = 0, iter(words)
    for cue in track_cues(Track(track.path, track.channel, (row,))):
        # A word that is broken over several cues belongs to the first one.
        ahead -= len(letters(cue.text))
        while ahead < 0:
            word = next(following)
            own.append(word)
            ahead += len(letters(word.text))
        if own:
            end, confidence = max(word.end for word in own), min(word.confidence for word in own)
            found.append(Segment(text_of(own), own[0].start, end, confidence, tuple(own)))
        own = []
    return found
