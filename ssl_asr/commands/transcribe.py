"""``ssl-asr transcribe``: text of files, folders and manifests from any run or pretrained model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_asr.errors import ConfigError


def transcribe(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Transcribe as the resolved config says; a file that cannot be read is named and passed over."""
    from ssl_asr.build.assembly import InferenceOptions, ask_for_times, load_model
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.inputs import gather
    from ssl_asr.inference.long_recordings import LongForm
    from ssl_asr.inference.resume import Progress, made_by, transcribe_manifest
    from ssl_asr.inference.subtitles import TIMED, format_of, render, write

    hush()
    console = make_console(stderr=True) if config["verbose"] else None
    say: Callable[[str], None] = console.print if console else (lambda _: None)
    kind, output = format_of(config["output"], config["format"]), config["output"]
    manifest, unreadable = gather(_inputs(config["input"]))
    own = ("window", "tail_s", "language", "whisper_task", "decoder")
    module = load_model(config["model"], InferenceOptions(**{key: config[key] for key in own}), say)
    if config["times"] is not None or kind in TIMED:
        ask_for_times(module, config["times"] or "max_prob", needed=kind in ("ctm", "textgrid"))
    path = None if output is None else Path(output)
    progress = None
    if path is not None:
        progress = Progress(path.with_name(f"{path.name}.progress.jsonl"), made_by(config, module))
    keys = ("max_batch_s", "num_workers", "accelerator", "precision")
    parts = LongForm(**{key: config[key] for key in ("chunk_s", "stride_s", "vad")}, batch_s=config["max_batch_s"])
    done = transcribe_manifest(
        module, manifest, progress=progress, long_form=parts, console=console, **{key: config[key] for key in keys}
    )
    if path is None:
        print(render(done.rows, kind), end="")
    else:
        write(path, done.rows, kind)
    if progress is not None:
        progress.finish()
    for skip in [*unreadable, *done.skips]:
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}", file=sys.stderr)
    if not done.rows:
        raise ConfigError("input", "nothing could be transcribed", "see the lines above")
    say(f"{done.audio_s:.1f} s of audio in {done.busy_s:.1f} s: RTFx {done.rtfx:.1f}")
    return None


def _inputs(given: list[str]) -> list[Path]:
    """Paths, with ``-`` standing for those on standard input, a line each, and wildcards spread out.

    Raises:
        ConfigError: a wildcard fits nothing.
    """
    named = [line for one in given for line in (sys.stdin.read().splitlines() if one == "-" else [one]) if line]
    paths: list[Path] = []
    for name in named:
        if not any(character in name for character in "*?[") or Path(name).exists():
            paths.append(Path(name))
            continue
        pattern = Path(name)
        root = Path(pattern.anchor) if pattern.is_absolute() else Path()
        found = sorted(root.glob(str(pattern.relative_to(root)) if pattern.is_absolute() else name))
        if not found:
            raise ConfigError("input", f"nothing is called {name}", "check the pattern")
        paths += found
    return paths
