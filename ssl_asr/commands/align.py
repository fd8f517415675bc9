"""``ssl-asr align``: when each word of known texts was said."""

import sys
from pathlib import Path
from typing import Any

from ssl_asr.errors import ConfigError


def align(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Align as the resolved config says; a text that does not fit its audio is named and passed over."""
    from ssl_asr.build.assembly import InferenceOptions, ask_for_times, load_model
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.inference.batches import recognise
    from ssl_asr.inference.subtitles import format_of, write
    from ssl_asr.training.ctc import CTCModule

    hush()
    console = make_console() if config["verbose"] else None
    kind = format_of(config["output"], config["format"])
    manifests = {name: read_manifest(path) for name, path in config["manifest"].items()}
    options = InferenceOptions(window=config["window"], tail_s=config["tail_s"])
    module = load_model(config["model"], options, console.print if console else (lambda _: None))
    if not isinstance(module, CTCModule):
        raise ConfigError("model", "has no CTC layer to align by", "a CTC or joint run")
    ask_for_times(module, config["times"], needed=True)
    module.forced = True
    keys = ("max_batch_s", "num_workers", "accelerator", "precision")
    own = {key: config[key] for key in keys}
    predictions, skips = recognise(
        module, manifests, console=console, on_bad_audio="skip", max_skip_fraction=1.0, **own
    )
    rows = [row for name in manifests for row in predictions[name]]
    kept = [row for row in rows if row.words or not row.ref.strip()]
    write(Path(config["output"]), kept, kind)
    for skip in (skip for name in manifests for skip in skips[name]):
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}", file=sys.stderr)
    for row in rows:
        if not row.words and row.ref.strip():
            print(f"skipped {row.id}: no_room: its text does not fit into its audio", file=sys.stderr)
    if not kept:
        raise ConfigError("manifest", "nothing could be aligned", "see the lines above")
    if console is not None:
        words = sum(len(row.words) for row in kept)
        console.print(f"{words:,} words of {len(kept):,} utterances are in {config['output']}")
    return None
