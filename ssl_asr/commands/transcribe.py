"""``ssl-asr transcribe``: transcripts of files, folders and manifests, from any run or pretrained model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.schemas import TranscribeConfig

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.data.manifest import Manifest
    from ssl_asr.inference.outputs import Outputs
    from ssl_asr.inference.resume import Transcribed


def transcribe(config: TranscribeConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Transcribe. Recordings that are skipped are named on standard error and in the summary."""
    from ssl_asr.console import hush, make_console, say_to
    from ssl_asr.data.inputs import expand, gather
    from ssl_asr.inference.outputs import Outputs, formats_of
    from ssl_asr.inference.summary import Summary

    hush()
    console = make_console(stderr=True) if config.verbose else None
    kinds = formats_of(config.output, config.format)
    given = gather(expand(config.input, sys.stdin), root=config.root)
    outputs = Outputs(
        config.output,
        kinds,
        given.manifest,
        sources=given.sources,
        with_summary=True,
        overwrite=config.overwrite,
    )
    # Without a readable recording, the model is not loaded.
    done = _transcribe(config, given.manifest, outputs, console) if len(given.manifest) else None
    rows, skips, noticed = (done.rows, done.skips, done.notices) if done is not None else ([], [], [])
    fast = outputs.write(rows, config) if rows else []
    silent = [f"{row.id}: no speech was found. vad=false decodes it anyway" for row in rows if row.no_speech]
    summary = Summary(given.count, len(rows), [*given.skips, *skips], [*given.notes, *silent, *fast], notices=noticed)
    if outputs.summary is not None:
        summary.write(outputs.summary)
    if outputs.progress is not None:
        outputs.progress.unlink(missing_ok=True)
    summary.show(console, outputs.summary)
    if done is not None:
        say_to(console)(f"{done.audio_s:.1f} s of audio in {done.busy_s:.1f} s: RTFx {done.rtfx:.1f}")
    summary.check(config.max_skip_fraction)
    return None


def _transcribe(
    config: TranscribeConfig, manifest: "Manifest", outputs: "Outputs", console: "Console | None"
) -> "Transcribed":
    """The transcripts of all recordings. The outputs' progress file has those of an interrupted run."""
    from ssl_asr.console import say_to
    from ssl_asr.inference.model import load_model
    from ssl_asr.inference.options import inference_options, long_form, run_options
    from ssl_asr.inference.outputs import has_times
    from ssl_asr.inference.resume import ProgressFile, made_by, transcribe_manifest
    from ssl_asr.training.module import TranscribeOptions

    module = load_model(config.model, inference_options(config), say_to(console))
    options = TranscribeOptions()
    if config.times is not None or has_times(outputs.kinds):
        required = bool({"ctm", "textgrid"} & set(outputs.kinds))
        options = TranscribeOptions(confidence=module.confidence_measure(config.times or "max_prob", required=required))
    path = outputs.progress
    return transcribe_manifest(
        module,
        manifest,
        run=run_options(config, module),
        options=options,
        long_form=long_form(config, config.max_batch_s, check_short=True),
        progress=None if path is None else ProgressFile(path, made_by(config, module, options)),
        console=console,
    )
