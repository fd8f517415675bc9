"""Transcribe many recordings. Transcripts are written as they are finished, so that an interrupted run resumes."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ssl_asr.config.options import plain, plain_option
from ssl_asr.config.schemas import TranscribeConfig
from ssl_asr.data.identity import Identity, content_digest, identity
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.signal import print_notices
from ssl_asr.errors import ConfigError
from ssl_asr.inference.batches import Transcripts, ignore_predictions, transcribe_manifests
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.running import RunOptions
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.training.module import ASRModule, TranscribeOptions
from ssl_asr.types import Notice, Seconds, Skip, Utterance


@dataclass(frozen=True, slots=True)
class Transcribed:
    """Transcripts in input order, skipped recordings, and the speed of this run.

    Attributes:
        rows: Transcripts in the order of the manifest.
        skips: Recordings that could not be transcribed.
        audio_s: Seconds of audio transcribed in this run.
        busy_s: Seconds of this run for reading and decoding, without loading the model.
        notices: Findings in the audio of all recordings, in the order of the manifest.
    """

    rows: list[Prediction]
    skips: list[Skip]
    audio_s: Seconds
    busy_s: Seconds
    notices: list[Notice]

    @property
    def rtfx(self) -> float:
        """Inverse real-time factor: seconds of audio per second."""
        return self.audio_s / max(1e-9, self.busy_s)


@dataclass(frozen=True, slots=True)
class _Saved:
    """A finished transcript, a digest of the audio's content, and the names of the findings in the audio."""

    row: Prediction
    content: str | None
    findings: list[str]

    def line(self) -> str:
        """A line of the progress file."""
        return to_json({"content": self.content, "findings": self.findings} | self.row.record()) + "\n"


class ProgressFile:
    """A JSON Lines file of finished transcripts. It is removed when all recordings are done.

    Transcripts are found by the identity of their recording, so ids may change before a run resumes.

    Args:
        path: The file.
        made_by: Plain data that identifies the model and its settings.

    Raises:
        ConfigError: The file exists and was written by another model or with other settings.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self.path = path
        self.digest = hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()
        self._saved: dict[Identity, _Saved] = {}
        if path.is_file():
            self._read()

    def _head(self) -> str:
        return json.dumps({"made_by": self.digest})

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if len(lines) == 1 and self._head().startswith(lines[0]):
            # Empty, or the run was interrupted while it wrote the first line.
            return
        if lines[0] != self._head():
            what = "holds transcripts of an interrupted run of another model, or with other settings"
            raise ConfigError(str(self.path), what, "resume with the same settings, or delete the file")
        for line in lines[1:]:
            try:
                record = json.loads(line)
                content, findings = record.pop("content", None), record.pop("findings", [])
                row = Prediction.from_record(record)
            except (json.JSONDecodeError, TypeError, AttributeError):
                # The run was interrupted while it wrote this line.
                break
            self._saved[identity(row)] = _Saved(row, content, findings)

    def _unchanged(self) -> dict[Identity, _Saved]:
        """What is saved of files that have not changed since."""
        return {key: saved for key, saved in self._saved.items() if saved.content == _content(saved.row)}

    @property
    def done(self) -> dict[Identity, Prediction]:
        """Finished transcripts of files that have not changed since."""
        return {key: saved.row for key, saved in self._unchanged().items()}

    def notices(self, utterances: Iterable[Utterance]) -> list[Notice]:
        """Findings in the audio of finished recordings, under the ids that they have now."""
        return [Notice(one.id, finding) for one in utterances for finding in self._saved[identity(one)].findings]

    def begin(self) -> None:
        """Rewrite the file without a partial last line. The file is replaced at once, so that no transcript is lost.

        Raises:
            ConfigError: It cannot be written.
        """
        with self._written(), written_whole(self.path) as file:
            file.write(f"{self._head()}\n")
            file.writelines(saved.line() for saved in self._unchanged().values())

    def add(self, rows: Sequence[Prediction], notices: Sequence[Notice]) -> None:
        """Append transcripts, with the findings in their audio.

        Raises:
            ConfigError: The file cannot be written.
        """
        with self._written(), self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                findings = [notice.finding for notice in notices if notice.id == row.id]
                file.write(_Saved(row, _content(row), findings).line())

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            remedy = "make room or give another output. The same command continues with what is left"
            raise ConfigError(str(self.path), what, remedy) from None

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _content(row: Prediction) -> str | None:
    return content_digest(row.audio_filepath)


def transcribe_manifest(
    module: ASRModule,
    manifest: Manifest,
    *,
    run: RunOptions,
    options: TranscribeOptions,
    long_form: LongForm,
    progress: ProgressFile | None,
    console: Console | None,
) -> Transcribed:
    """Transcribe a manifest, except recordings that are already in the progress file.

    Findings in the audio of all recordings are printed on standard error at the end.

    Args:
        module: The model.
        manifest: Recordings.
        run: How the model is run.
        options: What is returned besides text.
        long_form: Settings for recordings that are too long for one pass.
        progress: File of finished transcripts, or None.
        console: Shows progress; None shows nothing.
    """
    keys = [identity(utterance) for utterance in manifest]
    wanted = set(keys)
    done = {} if progress is None else {key: row for key, row in progress.done.items() if key in wanted}
    left = [i for i, key in enumerate(keys) if key not in done]
    finished = [utterance for utterance, key in zip(manifest, keys, strict=True) if key in done]
    if done and console is not None:
        console.print(f"{len(finished)} of {len(keys)} recordings were transcribed before the run was interrupted")
    earlier = [] if progress is None else progress.notices(finished)
    found = Transcripts({"input": []}, {"input": []}, notices=earlier)
    began = time.monotonic()
    if left:
        if progress is not None:
            progress.begin()
        found = transcribe_manifests(
            module,
            {"input": manifest.select(left)},
            run=run,
            options=options,
            long_form=long_form,
            on_predictions=ignore_predictions if progress is None else progress.add,
            earlier=earlier,
            console=console,
            tables=False,
        )
    else:
        print_notices(earlier)
    busy_s = time.monotonic() - began
    new = found.predictions["input"]
    by_key = done | {identity(row): row for row in new}
    found_rows = ((utterance, by_key.get(key)) for utterance, key in zip(manifest, keys, strict=True))
    rows = [_renamed(row, utterance) for utterance, row in found_rows if row is not None]
    ranks = {utterance.id: rank for rank, utterance in enumerate(manifest)}
    noticed = sorted(found.notices, key=lambda notice: ranks[notice.id])
    return Transcribed(rows, found.skips["input"], sum(row.duration for row in new), busy_s, noticed)


def _renamed(row: Prediction, utterance: Utterance) -> Prediction:
    """A transcript with the id, the path and the reference that the recording has in this run."""
    path, ref, tags = utterance.audio_filepath, utterance.text, utterance.tags
    others = list(utterance.references)
    return replace(row, id=utterance.id, audio_filepath=path, ref=ref, references=others, tags=tags)


# Keys of the command that do not change transcripts.
_NOT_IN_TRANSCRIPTS = (
    *("input", "output", "format", "max_batch_s", "num_workers", "accelerator", "verbose"),
    *("max_skip_fraction", "overwrite"),
)


def made_by(config: TranscribeConfig, module: ASRModule, options: TranscribeOptions) -> dict[str, Any]:
    """Everything that the transcripts of a command depend on, as plain data."""
    settings = {key: value for key, value in plain(config).items() if key not in _NOT_IN_TRANSCRIPTS}
    used = {"decoder_used": plain_option(module.decoder), "word_times": options.confidence}
    return settings | used | {"weights": _weights_digest(module)}


def _weights_digest(module: ASRModule) -> str:
    """A digest of the first values of every weight. A model that was trained further has another one."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        values = weight.flatten()[:16].detach().to("cpu", torch.float32)
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()
