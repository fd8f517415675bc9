"""Exported Whisper models in their runtimes, at 30 s and with real lengths: WER, equal texts, CPU time and size.

python -m tests.benchmarks.export_parity MODEL MANIFEST [COUNT [FORMAT:QUANTIZATION …]]

COUNT utterances are taken at even distances. Rows of this package are the reference of the column ``same``: for each
window, the number of utterances with the same text, after the normalizer whisper_basic.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.decoding.seq2seq import WhisperGreedy
from ssl_asr.export.base import ExportModel
from ssl_asr.export.ctranslate2 import CTranslate2
from ssl_asr.export.ggml import Ggml
from ssl_asr.export.onnx import Onnx
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.metrics.edit import word_edits
from tests.export.models import texts_of

FORMATS = {each.name: each for each in (CTranslate2, Ggml, Onnx)}
ROWS = ["ctranslate2:float32", "ctranslate2:int8", "ggml:f16", "ggml:q8_0", "ggml:q5_0", "onnx:float32", "onnx:int8"]


def exported(name: str) -> ExportModel:
    """A run or a pretrained Whisper."""
    module = load_model(name, InferenceOptions())
    module.set_decoder(WhisperGreedy(suppress=True, max_tokens_per_s=None))
    encoder = module.speech_encoder
    net = WhisperForConditionalGeneration(encoder.net.config)
    net.model.encoder, net.model.decoder = encoder.net, module.model.net
    net.proj_out.weight = module.model.net.embed_tokens.weight
    net.eval().requires_grad_(False)
    return ExportModel(module=module, net=net, window=encoder.window, tail_s=encoder.tail_s)


def rows(
    model: ExportModel, waveforms: list[torch.Tensor], references: list[str], wanted: list[str]
) -> Iterator[tuple[str, ...]]:
    """Rows of the table, one for each window of each format."""
    normalize = get_normalizer("whisper_basic")
    ours: dict[bool, list[str]] = {}

    def row(name: str, size: str, real: bool, seconds: float, texts: list[str]) -> tuple[str, ...]:
        texts = [normalize(text, "en") for text in texts]
        same = sum(one == other for one, other in zip(texts, ours.setdefault(real, texts), strict=True))
        edits = [word_edits(normalize(ref, "en"), text) for ref, text in zip(references, texts, strict=True)]
        wer = 100 * sum(one.errors for one in edits) / sum(one.ref for one in edits)
        return name, size, "real" if real else "30 s", f"{wer:.2f}", f"{same}/{len(texts)}", f"{seconds:.1f}"

    for real in (False, True):
        start = time.process_time()
        texts = texts_of(model.module, waveforms, "real" if real else "30s")
        yield row("ssl_asr", "", real, time.process_time() - start, texts)
    for name in wanted:
        kind, quantization = name.split(":")
        with tempfile.TemporaryDirectory() as folder:
            form = FORMATS[kind]()
            form.write(model, Path(folder), quantization=quantization)
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            runtime = form.runtime(Path(folder), model)
            for real in (False, True):
                start = time.process_time()
                texts = list(runtime.transcribe(waveforms, real_length=real))
                yield row(name, f"{size:.0f}", real, time.process_time() - start, texts)


def main(name: str, manifest: str, count: str = "1000", *wanted: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    utterances = read_manifest(Path(manifest))
    utterances = utterances[:: max(1, len(utterances) // int(count))][: int(count)]
    waveforms = [read_waveform(utterance) for utterance in utterances]
    seconds = sum(map(len, waveforms)) / 16000
    print(f"{name}, {manifest}: {len(utterances)} utterances, {seconds:.0f} s of audio", flush=True)
    print("| format | MB | window | WER % | same | CPU s |\n|---|---|---|---|---|---|", flush=True)
    for columns in rows(exported(name), waveforms, [one.text for one in utterances], list(wanted) or ROWS):
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
