"""``ssl-asr transcribe``: transcripts of files, folders and manifests, from any run or pretrained model."""

import sys
from pathlib import Path

from ssl_asr.config.schemas import TranscribeConfig
from ssl_asr.errors import ConfigError


def transcribe(config: TranscribeConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Transcribe. Files that cannot be read are named on standard error."""
    from ssl_asr.console import hush, make_console, say_to
    from ssl_asr.data.inputs import expand, gather
    from ssl_asr.inference.model import load_model
    from ssl_asr.inference.options import inference_options, long_form, run_options
    from ssl_asr.inference.resume import ProgressFile, made_by, transcribe_manifest
    from ssl_asr.inference.subtitles import TIMED, format_of, render, write
    from ssl_asr.training.module import TranscribeOptions

    hush()
    console = make_console(stderr=True) if config.verbose else None
    kind = format_of(config.output, config.format)
    manifest, unreadable = gather(expand(config.input, sys.stdin))
    module = load_model(config.model, inference_options(config), say_to(console))
    options = TranscribeOptions()
    if config.times is not None or kind in TIMED:
        required = kind in ("ctm", "textgrid")
        options = TranscribeOptions(confidence=module.confidence_measure(config.times or "max_prob", required=required))
    path = None if config.output is None else Path(config.output)
    progress = None
    if path is not None:
        progress = ProgressFile(path.with_name(f"{path.name}.progress.jsonl"), made_by(config, module))
    done = transcribe_manifest(
        module,
        manifest,
        run=run_options(config),
        options=options,
        long_form=long_form(config, config.max_batch_s),
        progress=progress,
        console=console,
    )
    if path is None:
        print(render(done.rows, kind, config), end="")
    else:
        write(path, done.rows, kind, config)
    if progress is not None:
        progress.remove()
    for skip in [*unreadable, *done.skips]:
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}", file=sys.stderr)
    if not done.rows:
        raise ConfigError("input", "nothing could be transcribed", "see the lines above")
    say_to(console)(f"{done.audio_s:.1f} s of audio in {done.busy_s:.1f} s: RTFx {done.rtfx:.1f}")
    return None
