"""Segments of long recordings as utterances."""

from typing import Any

from ssl_asr.data.manifest import Manifest, pack_rows
from ssl_asr.data.manifest_lines import WHERE
from ssl_asr.errors import ManifestError, raise_all
from ssl_asr.textfiles import shown
from ssl_asr.types import Utterance

_EXPECTED = "expected {start, end, text} with 0 <= start < end, in seconds of the utterance"
# A segment may end this much after its utterance: times in manifests are rounded.
_ROUNDING_S = 0.01


def by_segments(manifest: Manifest) -> Manifest:
    """The segments of a manifest as utterances. Lines without ``segments`` are kept as they are.

    The segment with index 3 of the utterance ``a`` has the id ``a-3``. It has all other keys of its line.

    Raises:
        ManifestError, UserErrors: Segments have no text, or times that are not within their utterance.
    """
    rows: list[dict[str, Any]] = []
    errors: list[ManifestError] = []
    for utterance in manifest:
        segments = utterance.tags.get("segments")
        if segments is None:
            rows.append(_row(utterance))
            continue
        wrong = _errors(utterance, segments)
        errors += wrong
        if not wrong:
            rows += [_segment(utterance, number, segment) for number, segment in enumerate(segments)]
    raise_all(errors)
    if not rows:
        raise ManifestError(str(manifest.path), "has no segment", "add some, or set data.split_segments=false")
    made = pack_rows(rows, manifest.path.parent)
    made.path = manifest.path
    return made


def _errors(utterance: Utterance, segments: Any) -> list[ManifestError]:
    if not isinstance(segments, list):
        return [ManifestError(utterance.where, f"'segments' is {shown(segments)}, expected a list")]
    found = []
    for number, segment in enumerate(segments):
        times = (segment.get("start"), segment.get("end")) if isinstance(segment, dict) else (None, None)
        numbers = [time for time in times if isinstance(time, int | float) and not isinstance(time, bool)]
        right = len(numbers) == 2 and 0 <= numbers[0] < numbers[1] and isinstance(segment.get("text"), str)
        if not right:
            found.append(ManifestError(utterance.where, f"segment {number} is {shown(segment)}, {_EXPECTED}"))
        elif numbers[1] > utterance.duration + _ROUNDING_S:
            what = f"segment {number} ends at {numbers[1]:g} s, and the utterance at {utterance.duration:g} s"
            found.append(ManifestError(utterance.where, what, "correct its times, or those of the utterance"))
    return found


def _segment(utterance: Utterance, number: int, segment: dict[str, Any]) -> dict[str, Any]:
    start, end = segment["start"], min(segment["end"], utterance.duration)
    own = {"id": f"{utterance.id}-{number}", "offset": utterance.offset + start, "duration": end - start}
    more = {key: value for key, value in segment.items() if key not in ("start", "end")}
    # The references of the line are of the whole.
    whole = {key: value for key, value in _row(utterance).items() if key != "references"}
    return whole | more | own


def _row(utterance: Utterance) -> dict[str, Any]:
    """The line of an utterance, without its segments."""
    keys = ("id", "audio_filepath", "duration", "text", "offset", "lang", "task", "channel", "weight")
    tags = {key: value for key, value in utterance.tags.items() if key != "segments"}
    references = {"references": list(utterance.references)} if utterance.references else {}
    return tags | {key: getattr(utterance, key) for key in keys} | references | {WHERE: utterance.where}
