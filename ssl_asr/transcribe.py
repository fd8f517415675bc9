"""``python -m ssl_asr.transcribe``: text of files, folders and manifests from any run or pretrained Whisper."""

import json
import sys
from pathlib import Path
from typing import Any

from ssl_asr import cli
from ssl_asr.errors import ConfigError


def transcribe(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Transcribe as the resolved config says; a file that cannot be read is named and passed over."""
    from ssl_asr.build import InferenceOptions, load_model
    from ssl_asr.data.files import gather
    from ssl_asr.quiet import hush, make_console
    from ssl_asr.recognition import recognise

    hush()
    console = make_console(stderr=True) if config["verbose"] else None
    manifest, unreadable = gather([Path(path) for path in config["input"]])
    own = ("window", "tail_s", "language", "whisper_task", "decoder")
    options = InferenceOptions(**{key: config[key] for key in own})
    module = load_model(config["model"], options, console.print if console else (lambda _: None))
    predictions, skips = recognise(
        module,
        {"input": manifest},
        max_batch_s=config["max_batch_s"],
        num_workers=0,
        on_bad_audio="skip",
        max_skip_fraction=1.0,
        accelerator=config["accelerator"],
        precision=config["precision"],
        console=None,
    )
    rows = predictions["input"]
    if config["output"] is None:
        for row in rows:
            print(f"{row.audio_filepath}\t{row.hyp}")
    else:
        write_transcripts(Path(config["output"]), rows)
    for skip in [*unreadable, *skips["input"]]:
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}", file=sys.stderr)
    if not rows:
        raise ConfigError("input", "nothing could be transcribed", "see the lines above")
    return None


def write_transcripts(path: Path, rows: list[Any]) -> None:
    """Write one JSON object a line: id, audio_filepath, offset, duration, text, score; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            keys = ("id", "audio_filepath", "offset", "duration")
            record = {key: getattr(row, key) for key in keys} | {"text": row.hyp, "score": row.score}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.replace(path)


def main() -> None:
    """Entry point."""
    cli.run("transcribe", lambda: transcribe)


if __name__ == "__main__":
    main()
