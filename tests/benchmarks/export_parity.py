"""Exported models in their runtimes, Whisper at 30 s and with real lengths: WER, equal texts, CPU time and size.

python -m tests.benchmarks.export_parity MODEL MANIFEST,… RESULTS.json [COUNT [FORMAT:QUANTIZATION …]]

COUNT utterances of each manifest are taken at even distances. Rows of this package are the reference of the column
``same``: for each window, the number of utterances with the same text, with runs of spaces as one space. Texts that
differ are listed in RESULTS.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import torch

from ssl_asr.data.dataset import SpeechDataset
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.export.base import ExportModel
from ssl_asr.export.formats import load_format
from ssl_asr.export.model import load_export_model
from ssl_asr.export.parity import set_greedy, transcribed
from ssl_asr.inference.model import InferenceOptions
from ssl_asr.metrics.edit import word_edits
from ssl_asr.types import Example

ROWS = {
    "seq2seq": [
        *("transformers:float32", "ctranslate2:float32", "ctranslate2:int8", "ggml:f16", "ggml:q8_0", "ggml:q5_0"),
        *("onnx:float32", "onnx:int8"),
    ],
    "ctc": ["onnx:float32", "onnx:int8"],
}


class Table:
    """Rows, and the texts that differ from the first ones of the same window.

    Args:
        examples: Utterances that are transcribed.
        normalizer: str, normalizer of WER.
    """

    def __init__(self, examples: list[Example], normalizer: str) -> None:
        self._examples, self._normalize = examples, get_normalizer(normalizer)
        self._ours: dict[str | None, list[str]] = {}
        self.rows: list[dict[str, object]] = []

    def add(self, name: str, megabytes: float | None, window: str | None, texts: list[str], seconds: float) -> None:
        """Add and print a row."""
        texts = [" ".join(text.split()) for text in texts]
        ours = self._ours.setdefault(window, texts)
        pairs = zip([example.utterance for example in self._examples], ours, texts, strict=True)
        differences = [(one.id, first, text) for one, first, text in pairs if first != text]
        edits = [
            word_edits(self._normalize(example.utterance.text, "en"), self._normalize(text, "en"))
            for example, text in zip(self._examples, texts, strict=True)
        ]
        wer = 100 * sum(one.errors for one in edits) / sum(one.ref for one in edits)
        row = {"format": name, "mb": megabytes, "window": window, "wer": wer, "cpu_s": seconds}
        self.rows.append({**row, "utterances": len(texts), "differences": differences})
        columns = (
            name,
            "" if megabytes is None else f"{megabytes:.0f}",
            window or "",
            f"{wer:.2f}",
            f"{len(texts) - len(differences)} of {len(texts)}",
            f"{seconds:.1f}",
        )
        print(f"| {' | '.join(columns)} |", flush=True)


def timed(texts: Iterable[str]) -> tuple[list[str], float]:
    """The texts, and the CPU seconds that they took."""
    start = time.process_time()
    return list(texts), time.process_time() - start


def loaded(name: str) -> ExportModel:
    """The model that is exported, with greedy search."""
    torch.set_num_threads(1)
    model = load_export_model(name, InferenceOptions())
    set_greedy(model.module)
    return model


def exported(
    name: str, row: str, waveforms: list[torch.Tensor]
) -> tuple[float, dict[str | None, tuple[list[str], float]]]:
    """Size in megabytes, and for each window the texts and the CPU seconds.

    It runs in a process of its own, so that its CPU time is its own.
    """
    model = loaded(name)
    kind, quantization = row.split(":")
    form = load_format(kind)
    windows = [None] if model.window is None else ["30s", *(["real"] if form.real_length else [])]
    with tempfile.TemporaryDirectory() as folder:
        form.write(model, Path(folder), quantization=quantization)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        runtime = form.runtime(Path(folder), model)
        return size, {each: timed(runtime.transcribe(waveforms, real_length=each == "real")) for each in windows}


def fill(table: Table, name: str, model: ExportModel, examples: list[Example], wanted: list[str]) -> None:
    """Rows of this package, then those of each format."""
    for window in [None] if model.window is None else ["30s", "real"]:
        if window is not None:
            model.module.speech_encoder.set_window(window, None)
        table.add("ssl_asr", None, window, *timed(transcribed(model.module, examples)))
    for row in wanted:
        with get_context("spawn").Pool(1) as pool:
            size, found = pool.apply(exported, (name, row, [example.waveform_T for example in examples]))
        for window, texts in found.items():
            table.add(row, size, window, *texts)


def main(name: str, manifests: str, output: str, count: str = "1000", *wanted: str) -> None:
    """Print a table for each manifest."""
    results = {}
    for manifest in manifests.split(","):
        model = loaded(name)
        utterances = read_manifest(Path(manifest))
        utterances = utterances[:: max(1, len(utterances) // int(count))][: int(count)]
        dataset = SpeechDataset(utterances, tokenizer=model.module.tokenizer)
        examples = [dataset[i] for i in range(len(utterances))]
        seconds = sum(len(example.waveform_T) for example in examples) / 16000
        print(f"\n{name}, {manifest}: {len(examples)} utterances, {seconds:.0f} s of audio\n", flush=True)
        print("| format | MB | window | WER % | same | CPU s |\n| --- | --- | --- | --- | --- | --- |", flush=True)
        table = Table(examples, "whisper_basic" if model.module.task_name == "seq2seq" else "lower")
        results[manifest] = table.rows
        fill(table, name, model, examples, list(wanted) or ROWS[model.module.task_name])
        Path(output).write_text(json.dumps({"model": name, "results": results}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
