"""``ssl-asr align``: the time of each word of known texts, by CTC forced alignment."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.schemas import AlignConfig
from ssl_asr.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.inference.batches import Transcripts


def align(config: AlignConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Align. Texts that do not fit into their audio are named on standard error."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.inference.subtitles import format_of, write

    hush()
    console = make_console() if config.verbose else None
    kind = format_of(config.output, config.format)
    done = _align(config, console)
    rows = [row for name in config.manifest for row in done.predictions[name]]
    kept = [row for row in rows if row.words or not row.ref.strip()]
    write(Path(config.output), kept, kind, config)
    for skip in (skip for name in config.manifest for skip in done.skips[name]):
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}", file=sys.stderr)
    for row in rows:
        if not row.words and row.ref.strip():
            print(f"skipped {row.id}: no_room: its text does not fit into its audio", file=sys.stderr)
    if not kept:
        raise ConfigError("manifest", "nothing could be aligned", "see the lines above")
    if console is not None:
        words = sum(len(row.words) for row in kept)
        console.print(f"{words:,} words of {len(kept):,} utterances are in {config.output}")
    return None


def _align(config: AlignConfig, console: "Console | None") -> "Transcripts":
    """Each utterance's text with word times."""
    from ssl_asr.console import say_to
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.inference.batches import transcribe_manifests
    from ssl_asr.inference.model import load_model
    from ssl_asr.inference.options import inference_options, run_options
    from ssl_asr.training.module import TranscribeOptions

    manifests = {name: read_manifest(path) for name, path in config.manifest.items()}
    module = load_model(config.model, inference_options(config), say_to(console))
    if not module.aligns:
        raise ConfigError("model", "has no CTC layer, which alignment needs", "give a CTC or joint run")
    options = TranscribeOptions(confidence=module.confidence_measure(config.times, required=True), align=True)
    return transcribe_manifests(module, manifests, run=run_options(config), options=options, console=console)
