"""lhotse's manifests: recordings with supervisions, and cuts. The library reads and writes them (extra ``lhotse``)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_asr.data.formats.manifests import Target
from ssl_asr.data.formats.rows import NO_SPLIT, Found, ReadOptions, Row, full_path, located, split_name
from ssl_asr.data.media import open_source
from ssl_asr.errors import ManifestError, optional_import

_NAME = re.compile(r"(?P<before>.*?)(?P<kind>recordings|supervisions|cuts)(?P<after>.*?)\.jsonl?(\.gz)?", re.I)


def library() -> Any:
    """The package lhotse.

    Raises:
        ConfigError: It is not installed.
    """
    with optional_import("kind=lhotse", "lhotse", "lhotse"):
        import lhotse
    return lhotse


def is_lhotse(path: Path) -> bool:
    """Whether a file is named as lhotse's manifests are, or a folder has supervisions with recordings, or cuts."""
    if path.is_file():
        found = _NAME.fullmatch(path.name)
        return found is not None and found["kind"].lower() == "cuts"
    return path.is_dir() and bool(_pairs(path) or _cuts(path))


def _named(folder: Path, kind: str) -> dict[tuple[str, str], Path]:
    """Files of a kind, by what comes before and after it in their names."""
    found = {path: _NAME.fullmatch(path.name) for path in sorted(folder.iterdir()) if path.is_file()}
    return {(m["before"], m["after"]): path for path, m in found.items() if m is not None and m["kind"].lower() == kind}


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    recordings, supervisions = _named(folder, "recordings"), _named(folder, "supervisions")
    both = {key: (recordings[key], supervisions[key]) for key in recordings if key in supervisions}
    return {_split(before, after): pair for (before, after), pair in both.items()}


def _cuts(folder: Path) -> dict[str, Path]:
    return {_split(before, after): path for (before, after), path in _named(folder, "cuts").items()}


def _split(before: str, after: str) -> str:
    return split_name(after.strip("_-.") or before.strip("_-.")) or NO_SPLIT


def read_lhotse(path: Path, options: ReadOptions) -> Found:
    """Rows of a file of cuts, or of all recordings and supervisions in a folder, or else of all cuts in it.

    Each supervision is a row. Recordings that are not plain files, and cuts with effects, are left out and named.

    Raises:
        ConfigError: lhotse is not installed.
        ManifestError: lhotse cannot read a file.
    """
    lhotse = library()
    found = Found()
    if path.is_file():
        found_name = _NAME.fullmatch(path.name)
        split = _split(found_name["before"], found_name["after"]) if found_name is not None else NO_SPLIT
        _read_cuts(found, loaded(lhotse, path), path, split, options)
        return found
    pairs = _pairs(path)
    for split, (recordings, supervisions) in pairs.items():
        _read_pair(found, lhotse, recordings, supervisions, split, options)
    for split, cuts in _cuts(path).items() if not pairs else ():
        _read_cuts(found, loaded(lhotse, cuts), cuts, split, options)
    return found


def loaded(lhotse: Any, path: Path) -> list[Any]:
    """The recordings, supervisions or cuts of a file.

    Raises:
        ManifestError: lhotse cannot read it.
    """
    try:
        return list(lhotse.load_manifest_lazy(path) or [])
    except (ValueError, KeyError, TypeError, AssertionError, OSError, EOFError) as error:
        what = f"lhotse cannot read it: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise ManifestError(str(path), what, "check it with lhotse validate") from None


def _read_pair(found: Found, lhotse: Any, first: Path, second: Path, split: str, options: ReadOptions) -> None:
    recordings = {recording.id: recording for recording in loaded(lhotse, first)}
    used = set()
    for supervision in loaded(lhotse, second):
        recording = recordings.get(supervision.recording_id)
        used.add(supervision.recording_id)
        if recording is None:
            found.skip(supervision.id, "no_audio", f"no recording '{supervision.recording_id}'", str(second))
            continue
        _add(found, recording, supervision, supervision.start, str(second), split, options)
    for name in recordings.keys() - used:
        found.skip(name, "no_text", "a recording without a supervision", str(first))


def _read_cuts(found: Found, cuts: Sequence[Any], path: Path, split: str, options: ReadOptions) -> None:
    for cut in cuts:
        if not hasattr(cut, "recording") or cut.recording is None:
            found.skip(cut.id, "not_a_file", f"is a {type(cut).__name__} without a recording of its own", str(path))
        elif not cut.supervisions:
            found.skip(cut.id, "no_text", "a cut without a supervision", str(path))
        else:
            for supervision in cut.supervisions:
                start = cut.start + supervision.start
                _add(found, cut.recording, supervision, start, str(path), split, options)


def _add(
    found: Found, recording: Any, supervision: Any, start: float, where: str, split: str, options: ReadOptions
) -> None:
    sources = [source for source in recording.sources if source.type == "file"]
    if len(sources) != 1 or len(recording.sources) != 1:
        kinds = ", ".join(sorted({source.type for source in recording.sources})) or "nothing"
        found.skip(supervision.id, "not_a_file", f"its recording is {len(recording.sources)} of {kinds}", where)
        return
    if recording.transforms:
        found.skip(supervision.id, "effects", "its recording has effects: write the audio to files first", where)
        return
    channels = supervision.channel if isinstance(supervision.channel, list) else [supervision.channel]
    if len(channels) > 1 and sorted(channels) != sorted(recording.channel_ids):
        found.skip(supervision.id, "channels", f"has channels {channels}, expected one or all", where)
        return
    one = channels[0] if len(recording.channel_ids) > 1 and len(channels) == 1 else None
    known = {"lang": supervision.language, "speaker": supervision.speaker, "gender": supervision.gender}
    tags = {key: value for key, value in known.items() if value is not None}
    folders = [Path(where).parent, Path()] if options.audio_dir is None else [options.audio_dir]
    row = Row(
        id=supervision.id,
        audio=str(located(sources[0].source, folders)),
        text=supervision.text or "",
        split=split,
        offset=max(0.0, start),
        duration=supervision.duration,
        channel=one,
        tags={**tags, **(supervision.custom or {})},
        where=where,
    )
    found.rows.append(row)


# Writing -----------------------------------------------------------------------------------------------------------


def write_lhotse(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write ``recordings_SPLIT.jsonl.gz`` and ``supervisions_SPLIT.jsonl.gz``, with absolute paths.

    Raises:
        ConfigError: lhotse is not installed.
    """
    lhotse = library()
    recordings: dict[str, Any] = {}
    supervisions = []
    for row in rows:
        if row.audio not in recordings:
            recordings[row.audio] = _recording(lhotse, row, full_path(row.audio), len(recordings))
        recording = recordings[row.audio]
        supervisions.append(supervision_of(lhotse, row, recording))
    made = {
        "recordings": lhotse.RecordingSet.from_recordings(recordings.values()),
        "supervisions": lhotse.SupervisionSet.from_segments(supervisions),
    }
    for kind, manifest in made.items():
        manifest.to_file(target.folder / f"{kind}_{split}.jsonl.gz")
    return []


def supervision_of(lhotse: Any, row: Row, recording: Any) -> Any:
    """The supervision of a row in its recording."""
    tags = dict(row.tags)
    known = {key: None if tags.get(key) is None else str(tags.pop(key)) for key in ("lang", "speaker", "gender")}
    everything = recording.channel_ids if len(recording.channel_ids) > 1 else recording.channel_ids[0]
    return lhotse.SupervisionSegment(
        id=row.id,
        recording_id=recording.id,
        start=row.offset,
        duration=row.duration,
        channel=everything if row.channel is None else row.channel,
        text=row.text,
        language=known["lang"],
        speaker=known["speaker"],
        gender=known["gender"],
        custom=json.loads(json.dumps(tags)) or None,
    )


def _recording(lhotse: Any, row: Row, path: str, number: int) -> Any:
    """The recording of a row's file. Its id is that of the row where the file has one row, else a number."""
    source = open_source(row.audio)
    try:
        rate, frames, count = source.rate, source.frames, source.read(0, 1).shape[1]
    finally:
        source.close()
    channels = list(range(count))
    audio = lhotse.AudioSource(type="file", channels=channels, source=path)
    return lhotse.Recording(
        id=f"{number:07d}-{Path(row.audio).stem}",
        sources=[audio],
        sampling_rate=rate,
        num_samples=frames,
        duration=frames / rate,
        channel_ids=channels,
    )
