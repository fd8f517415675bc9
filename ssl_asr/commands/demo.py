"""``ssl-asr demo``: the main job in minutes, on a machine that reaches a package index and nothing else.

Synthesizes a corpus, evaluates Whisper tiny.en on it, fine-tunes, evaluates again and transcribes a file. Every step is
a command, which is shown as a user would type it.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ssl_asr.config.tools import DemoConfig
from ssl_asr.errors import TrainingError


def step(title: str, command: str, *arguments: str) -> None:
    """Show and run one command.

    Raises:
        TrainingError: The command failed.
    """
    shown = shlex.join(["ssl-asr", command, *arguments])
    print(f"\n== {title}\n$ {shown}", flush=True)
    done = subprocess.run([sys.executable, "-m", "ssl_asr", command, *arguments], check=False)
    if done.returncode != 0:
        raise TrainingError("demo", f"this step ended with code {done.returncode}: {shown}", "see above")


def scores(folder: Path) -> dict[str, Any]:
    """The test scores of a results.json, by normalizer."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"]["scores"]
    return found


def demo(config: DemoConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Run every step and print the table; returns the WER after fine-tuning."""
    from ssl_asr.console import TitledTable, make_console

    out = Path(config.output_dir)
    corpus, before, run = out / "corpus", out / "zero_shot", out / "run"
    sizes = [f"{split}={getattr(config, split)}" for split in ("train", "dev", "test")]
    step("1. speak a corpus: medication orders, several voices", "corpus", f"output_dir={corpus}", *sizes)
    model = config.model
    manifest = f"{corpus}/test.jsonl"
    step("2. Whisper as it is", "evaluate", f"model={model}", f"manifest={manifest}", f"output_dir={before}")
    data = [f"data.{split}={corpus}/{split}.jsonl" for split in ("train", "dev", "test")]
    settings = [
        f"backbone={model}",
        "freeze=false",
        f"trainer.max_epochs={config.epochs}",
        "data.max_batch_size=16",
    ]
    step("3. fine-tune it", "train", *settings, *data, f"run_dir={run}")
    audio = json.loads((corpus / "test.jsonl").read_text(encoding="utf-8").splitlines()[0])["audio_filepath"]
    step("4. transcribe a file", "transcribe", f"model={run}", f"input=[{corpus / audio}]")

    old, new = scores(before), scores(run)
    table = TitledTable("WER on the test voices, %")
    for column in ("normalizer", "zero-shot", "fine-tuned"):
        table.add_column(column, justify="left" if column == "normalizer" else "right")
    for name in old:
        table.add_row(name, f"{100 * old[name]['wer']:.1f}", f"{100 * new[name]['wer']:.1f}")
    console = make_console()
    console.print(table)
    for what, path in (
        ("corpus", corpus),
        ("fine-tuned model", run / "checkpoints" / "best.ckpt"),
        ("predictions", run / "predictions"),
        ("metrics", run / "metrics"),
    ):
        console.print(f"{what}: {path}")
    return float(next(iter(new.values()))["wer"])
