"""NIST's CTM: a line for each word, for sclite and similar tools."""

import math
from collections.abc import Sequence

from ssl_asr.inference.formats.timeline import on_grid, split_at_spaces, tracks
from ssl_asr.inference.names import recording_names
from ssl_asr.metrics.report import Prediction


def ctm(rows: Sequence[Prediction]) -> str:
    """Lines of ``name channel start duration word confidence``, sorted by name, channel and start.

    Names have no spaces, see `recording_names`. Channels are counted from 1. Mixed channels are channel 1, or ``mix``
    if a channel of the same recording is there too. A phrase with spaces is a line for each of its words, which share
    its time in proportion to their characters. Times are in hundredths of a second. Words of one speaker do not
    overlap, and none has zero length.
    """
    names = {(row.audio_filepath, row.channel): name for row, name in zip(rows, recording_names(rows), strict=True)}
    apart = {row.audio_filepath for row in rows if row.channel is not None}
    lines: list[tuple[str, float, int, str]] = []
    for track in tracks(rows):
        # A line that begins with two semicolons is a comment.
        name = names[track.path, track.channel]
        name = f"_{name}" if name.startswith(";;") else name
        mixed = "mix" if track.path in apart else "1"
        channel = mixed if track.channel is None else str(track.channel + 1)
        place = math.inf if track.channel is None else track.channel
        words = split_at_spaces(track.words())
        grid = on_grid([(word.start, word.end) for word in words], 100, until=track.end)
        for word, (start, end) in zip(words, grid, strict=True):
            times = f"{start / 100:.2f} {(end - start) / 100:.2f}"
            confidence = min(1.0, max(0.0, word.confidence)) if math.isfinite(word.confidence) else 0.0
            lines.append((name, place, start, f"{name} {channel} {times} {word.text} {confidence:.2f}\n"))
    return "".join(line for *_, line in sorted(lines, key=lambda line: line[:3]))
