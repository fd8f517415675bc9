"""Shards of tar: lhotse's Shar folders, with a manifest of ours as the index of their members.

    train.jsonl                     a line for each utterance, which names the bytes of its audio in a tar
    train/recording.000000.tar      audio and lhotse's description of each of the first 1,000 utterances
    train/cuts.000000.jsonl.gz      lhotse's cuts of the same utterances

Training reads the manifest. So the order of batches, filters, resuming and ranks are those of audio in files. lhotse,
and tools that read its folders, stream the shards.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from ssl_asr.console import tracked
from ssl_asr.data.files import Location, members, name_of, opened
from ssl_asr.data.formats.lhotse import library, loaded, supervision_of
from ssl_asr.data.formats.manifests import Target, manifests_in
from ssl_asr.data.formats.rows import NO_SPLIT, Found, ReadOptions, Row, split_name
from ssl_asr.data.media import source_of
from ssl_asr.data.remote import MediaError
from ssl_asr.errors import AudioError, ManifestError
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import Hertz, Samples

_CUTS = re.compile(r"cuts(?P<shard>(\.\d+)?)\.jsonl(\.gz)?")
# Names of members that every tool reads back as they are.
_SAFE_ID = re.compile(r"[\w.-][\w.@+=,-]*(/[\w.@+=,-]+)*", re.ASCII)
# What FLAC can hold.
_MOST_CHANNELS, _HIGHEST_RATE = 8, 655_350


def is_shar(path: Path) -> bool:
    """Whether a folder has shards of cuts with their recordings, or folders with some and no manifest."""
    if not path.is_dir():
        return False
    return bool(_shards(path)) or (any(map(_shards, _folders(path))) and not manifests_in(path))


def _folders(path: Path) -> list[Path]:
    return [each for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]


def _shards(folder: Path) -> list[tuple[Path, Path]]:
    """Cuts and recordings of each shard."""
    found = [(path, _CUTS.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    pairs = [(path, folder / f"recording{match['shard']}.tar") for path, match in found if match is not None]
    return [(cuts, tar) for cuts, tar in pairs if tar.is_file()]


def read_shar(path: Path, options: ReadOptions) -> Found:  # noqa: ARG001
    """Rows of a folder of shards, or of all such folders in it, whose names are splits. Audio stays in its shard.

    Each supervision is a row. Cuts without audio are left out and named.

    Raises:
        ConfigError: lhotse is not installed.
        ManifestError: lhotse cannot read a file, or a shard is not a tar.
    """
    found = Found()
    for folder in [path] if _shards(path) else filter(_shards, _folders(path)):
        split = split_name(folder.resolve().name) if folder != path else NO_SPLIT
        for cuts, tar in _shards(folder):
            _read_shard(found, cuts, tar, split)
    return found


def _read_shard(found: Found, cuts: Path, tar: Path, split: str) -> None:
    try:
        held = members(str(tar))
    except MediaError as error:
        raise ManifestError(str(tar), error.what, error.remedy) from None
    audio = {str(PurePosixPath(name).with_suffix("")): name for name in held if not name.endswith((".json", ".nometa"))}
    for cut in loaded(library(), cuts):
        name = audio.get(cut.id)
        if name is None or name.endswith(".nodata"):
            found.skip(cut.id, "no_audio", f"{tar} has no audio of this cut", str(cuts))
        elif not cut.supervisions:
            found.skip(cut.id, "no_text", "a cut without a supervision", str(cuts))
        else:
            location = str(Location(str(tar), name, *held[name]))
            for supervision in cut.supervisions:
                _add(found, cut, supervision, location, str(cuts), split)


def _add(found: Found, cut: Any, supervision: Any, location: str, where: str, split: str) -> None:
    if supervision.start < 0 or supervision.end > cut.duration + 0.1:
        found.skip(supervision.id, "outside", f"is not whole in cut {cut.id}", where)
        return
    channels = supervision.channel if isinstance(supervision.channel, list) else [supervision.channel]
    several = cut.recording is not None and len(cut.recording.channel_ids) > 1
    known = {"lang": supervision.language, "speaker": supervision.speaker, "gender": supervision.gender}
    tags = {key: value for key, value in known.items() if value is not None}
    found.rows.append(
        Row(
            id=supervision.id,
            audio=location,
            text=supervision.text or "",
            split=split,
            offset=supervision.start,
            duration=min(supervision.duration, cut.duration - supervision.start),
            channel=cut.recording.channel_ids.index(channels[0]) if several and len(channels) == 1 else None,
            tags={**tags, **(supervision.custom or {})},
            where=where,
        )
    )


# Writing -----------------------------------------------------------------------------------------------------------


def write_shar(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write the folder ``SPLIT`` of shards, and the manifest ``SPLIT.jsonl`` that names their members.

    Whole files are copied byte for byte. A part of a file, or one channel of it, is cut and written as FLAC, or as WAV
    where its samples need more than 24 bits. All its samples stay as they are. lhotse reads the copies whose formats it
    reads from memory.

    Raises:
        ConfigError: lhotse is not installed.
        AudioError: Audio cannot be read.
    """
    lhotse = library()
    from lhotse.shar import JsonlShardWriter, TarWriter

    folder = target.folder / split
    folder.mkdir()
    names = _member_names(rows)
    size, address = target.shards.size, target.shards.address
    made: list[Row] = []
    bar = tracked(rows, f"write {split}", shown=target.progress)
    with (
        TarWriter(str(folder / "recording.%06d.tar"), shard_size=size) as tar,
        JsonlShardWriter(str(folder / "cuts.%06d.jsonl.gz"), shard_size=size) as cuts,
    ):
        for name, row in zip(names, bar, strict=True):
            audio = _audio_of(row)
            cut = _cut_of(lhotse, name, row, audio)
            tar.write(f"{name}{audio.suffix}", io.BytesIO(audio.data))
            tar.write(f"{name}.json", io.BytesIO(to_json(cut.recording.to_dict()).encode()), count=False)
            cuts.write(cut)
            made.append(replace(row, audio=f"{name}{audio.suffix}", offset=0.0, channel=None))
    with written_whole(target.folder / f"{split}.jsonl") as file:
        for first in range(0, len(made), size):
            tar_name = f"{split}/recording.{first // size:06d}.tar"
            held = members(str(target.folder / tar_name))
            base = tar_name if address is None else f"{address.rstrip('/')}/{tar_name}"
            for row in made[first : first + size]:
                location = Location(base, row.audio, *held[row.audio])
                file.write(to_json(replace(row, audio=str(location)).plain(str)) + "\n")
    parts = sum(_is_part(row) for row in rows)
    return [f"shar: {parts} parts of recordings in {split} are cut and written anew"] if parts else []


def _member_names(rows: Sequence[Row]) -> list[str]:
    """Ids, or numbers in place of ids that are no safe names of files."""
    taken = {row.id for row in rows}
    names = []
    for number, row in enumerate(rows):
        name = row.id if _SAFE_ID.fullmatch(row.id) and ".." not in row.id.split("/") else f"{number:07d}"
        names.append(f"_{name}" if name != row.id and name in taken else name)
    return names


def _is_part(row: Row) -> bool:
    return not row.whole or row.channel is not None


@dataclass(frozen=True, slots=True)
class _Audio:
    """A file in memory: its bytes, the suffix of its name, and its shape."""

    data: bytes
    suffix: str
    rate: Hertz
    frames: Samples
    channels: int


def _audio_of(row: Row) -> _Audio:
    """The audio of a row as a file of its own."""
    assert row.duration is not None
    try:
        with source_of(row.audio) as source:
            rate = source.rate
            if not _is_part(row):
                with opened(row.audio) as file:
                    data = file.read()
                return _Audio(data, name_of(row.audio).suffix.lower() or ".audio", rate, source.frames, source.channels)
            samples_TC = source.read(round(row.offset * rate), round(row.duration * rate))
    except (MediaError, OSError) as error:
        raise AudioError(f"{row.id} ({row.where})", f"{row.audio}: {error}", "check the file") from None
    if row.channel is not None:
        samples_TC = samples_TC[:, row.channel : row.channel + 1]
    return _Audio(*_encoded(samples_TC, rate), rate, len(samples_TC), samples_TC.shape[1])


def _encoded(samples_TC: NDArray[np.float32], rate: Hertz) -> tuple[bytes, str]:
    """A file that decodes to these very samples, and its suffix."""
    stream = io.BytesIO()
    fits = samples_TC.shape[1] <= _MOST_CHANNELS and rate <= _HIGHEST_RATE
    kinds: list[tuple[int, type[np.signedinteger[Any]]]] = [(16, np.int16), (24, np.int32)]
    for bits, kind in kinds if fits else ():
        full = np.float32(2.0 ** (bits - 1))
        integers_TC = samples_TC * full
        if (integers_TC == np.rint(integers_TC)).all() and -full <= integers_TC.min() and integers_TC.max() < full:
            # libsndfile takes the upper 24 of 32 bits.
            shift = 256 if bits == 24 else 1
            soundfile.write(stream, integers_TC.astype(kind) * kind(shift), rate, format="FLAC", subtype=f"PCM_{bits}")
            return stream.getvalue(), ".flac"
    soundfile.write(stream, samples_TC, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue(), ".wav"


def _cut_of(lhotse: Any, name: str, row: Row, audio: _Audio) -> Any:
    """The cut of a row, whose recording is in a shard."""
    channels = list(range(audio.channels))
    recording = lhotse.Recording(
        id=name,
        sources=[lhotse.AudioSource(type="shar", channels=channels, source="")],
        sampling_rate=audio.rate,
        num_samples=audio.frames,
        duration=audio.frames / audio.rate,
        channel_ids=channels,
    )
    own = replace(row, offset=0.0, channel=None, duration=min(row.duration or 0.0, recording.duration))
    kind = lhotse.MonoCut if audio.channels == 1 else lhotse.MultiCut
    return kind(
        id=name,
        start=0.0,
        duration=recording.duration,
        channel=channels[0] if audio.channels == 1 else channels,
        supervisions=[supervision_of(lhotse, own, recording)],
        recording=recording,
    )
