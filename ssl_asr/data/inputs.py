"""Audio files, folders and manifests as one list of utterances to transcribe."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ssl_asr.data.audio import AUDIO_SUFFIXES, audio_duration_s
from ssl_asr.data.manifest import Manifest, pack_rows, read_manifest
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserError, raise_all
from ssl_asr.types import Skip


def expand(given: Sequence[str], standard_input: Iterable[str]) -> list[Path]:
    """Paths of names, wildcards, and ``-``, which stands for the paths on standard input, one a line.

    Raises:
        ConfigError: A wildcard matches nothing.
    """
    names = [line for one in given for line in (_lines(standard_input) if one == "-" else [one]) if line]
    paths: list[Path] = []
    for name in names:
        if not any(character in name for character in "*?[") or Path(name).exists():
            paths.append(Path(name))
            continue
        pattern = Path(name)
        root = Path(pattern.anchor) if pattern.is_absolute() else Path()
        found = sorted(root.glob(str(pattern.relative_to(root)) if pattern.is_absolute() else name))
        if not found:
            raise ConfigError("input", f"nothing matches {name}", "check the pattern")
        paths += found
    return paths


def _lines(stream: Iterable[str]) -> list[str]:
    return "".join(stream).splitlines()


def gather(inputs: Sequence[Path]) -> tuple[Manifest, list[Skip]]:
    """Collect the utterances of audio files, folders (searched recursively) and manifests (``.jsonl``).

    Manifests need no text. Inputs with the same id are taken once.

    Returns:
        A manifest of all utterances, and the files that cannot be read.

    Raises:
        ManifestError, UserErrors: An input does not exist, or no utterance is found.
    """
    rows: list[dict[str, Any]] = []
    skips: list[Skip] = []
    errors: list[UserError] = []
    for path in inputs:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
            if not files:
                errors.append(
                    ManifestError(str(path), "has no audio files", f"it looks for {' '.join(AUDIO_SUFFIXES)}")
                )
            for file in files:
                _add(file, rows, skips)
        elif path.suffix == ".jsonl" and path.is_file():
            rows += _manifest_rows(path)
        elif path.is_file():
            _add(path, rows, skips)
        else:
            errors.append(ManifestError(str(path), "no such file or folder", "check input"))
    raise_all(errors)
    if not rows:
        reasons = "; ".join(skip.detail for skip in skips[:5])
        raise ManifestError("input", f"no file can be read: {reasons}", "give audio files, folders or manifests")
    return pack_rows(_unique(rows), Path()), skips


def _add(file: Path, rows: list[dict[str, Any]], skips: list[Skip]) -> None:
    try:
        duration = audio_duration_s(file)
    except AudioError as error:
        skips.append(Skip(str(file), "", error.reason, str(error)))
        return
    rows.append({"id": str(file), "audio_filepath": str(file.resolve()), "duration": duration})


def _manifest_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for utterance in read_manifest(path, require_text=False):
        row = {"id": utterance.id, "audio_filepath": utterance.audio_filepath, "duration": utterance.duration}
        optional = {
            "offset": utterance.offset,
            "lang": utterance.lang,
            "task": utterance.task,
            "channel": utterance.channel,
        }
        audio = str(Path(utterance.audio_filepath).resolve())
        rows.append(row | {"audio_filepath": audio} | {k: v for k, v in optional.items() if v is not None})
    return rows


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without duplicate ids, so that an input that is given twice is transcribed once."""
    by_id = {row["id"]: row for row in rows}
    return list(by_id.values())
