"""Transcription speed against other libraries: same weights, speech and machine, in one run.

    make bench-full      (hours on two cores; BENCH_UTTERANCES=32 for a quick look)

Whisper is compared with transformers' ``generate`` and faster-whisper. CTC search is compared with pyctcdecode (in its
own environment, BENCH_PEERS, since it needs numpy 1), torchaudio's decoder (flashlight) and SpeechBrain's. The CTC
comparison needs a trained run, its language model and a decoder file of ``tune_decoding``:
BENCH_CTC=RUN:LM.arpa:DECODER.yaml.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from tests.benchmarks.turns import Runner, show, take_turns

BATCH = 16
CORPORA = ["en_an4", "en_librispeech_mini"]
UTTERANCES = int(os.environ.get("BENCH_UTTERANCES", "100000"))


def _speech(data_root, corpus, folder):
    """Test utterances as files of samples, longest first: paths, references and total seconds."""
    manifest = read_manifest(data_root / corpus / "test.jsonl")
    order = sorted(range(len(manifest)), key=lambda i: -manifest[i].duration)
    order = order[:: max(1, len(order) // UTTERANCES)]
    paths, references, seconds = [], [], 0.0
    for i in order:
        paths.append(folder / f"{i}.npy")
        np.save(paths[-1], read_waveform(manifest[i]).numpy())
        references.append(manifest[i].text)
        seconds += manifest[i].duration
    return paths, references, seconds


def _batches(paths):
    return [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]


def _tuned(run, base, folder):
    """The weights of one of our runs, in transformers' format."""
    import torch
    from transformers import WhisperForConditionalGeneration

    import ssl_asr

    module = ssl_asr.load(run, device="cpu").module
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model.model.encoder.load_state_dict(module.model.encoder.net.state_dict())
    model.model.decoder.load_state_dict(module.model.net.state_dict())
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((Path(base) / "tokenizer.json").read_bytes())
    return folder


def _converted(folder):
    from ctranslate2.converters import TransformersConverter

    target = f"{folder}-ct2"
    TransformersConverter(str(folder), copy_files=["tokenizer.json"]).convert(target, quantization="float32")
    return target


@pytest.mark.benchmark
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("corpus", CORPORA)
def test_whisper_speed_and_equal_texts(data_root, whisper_tiny_en, tmp_path, corpus, beams):
    """Prints error rates and speeds. Asserts that at 30 s our texts equal transformers'."""
    pytest.importorskip("faster_whisper", reason="pip install -e '.[bench]'")
    paths, references, speech_s = _speech(data_root, corpus, tmp_path)
    base, batched = str(whisper_tiny_en), {"batch": BATCH, "beams": beams}
    # A model that was not trained on real lengths sometimes does not stop, so its number of tokens is capped.
    real = {"model": base, "window": "real", "tail_s": 4.0, "max_tokens_per_s": 10.0, **batched}
    runners = [
        Runner("transformers", "transformers_whisper", {"model": base, "beams": beams}),
        Runner("ours, 30 s", "ours_whisper", {"model": base, "window": "30s", "tail_s": None, **batched}),
        Runner("ours, real + 4 s", "ours_whisper", real),
    ]
    converted = _converted(_linked(base, tmp_path / "base"))
    for kind in ("float32", "int8"):
        options = {"model": converted, "compute_type": kind, "beams": beams}
        runners.append(Runner(f"faster-whisper {kind}", "faster_whisper", {**options, "batched": False}))
        # Batches are no faster on a CPU, so they are measured once.
        if beams == 1 and corpus == CORPORA[0]:
            runners.append(Runner(f"its engine, batched, {kind}", "faster_whisper", {**options, "batched": True}))
    tuned = os.environ.get(f"BENCH_{corpus.upper()}_RUN")
    if tuned:
        own = {"model": tuned, "window": None, "tail_s": None, **batched}
        runners.append(Runner("ours, tuned, as tuned", "ours_whisper", own))
    if tuned and beams == 1:
        exported = str(_tuned(tuned, base, tmp_path / "tuned"))
        runners.append(Runner("transformers, tuned", "transformers_whisper", {"model": exported, "beams": beams}))
        options = {"model": _converted(exported), "compute_type": "float32", "beams": beams, "batched": False}
        runners.append(Runner("faster-whisper, tuned", "faster_whisper", options))
    take_turns(runners, _batches(paths))
    peers = ["transformers", "faster-whisper float32", "faster-whisper int8"]
    title = f"Whisper tiny.en, {corpus}, {len(paths)} utterances, {'greedy' if beams == 1 else f'beam {beams}'}"
    show(f"{title}, batches of {BATCH}, 2 threads", runners, references, speech_s, peers, "whisper_english")
    assert [text.strip() for text in runners[0].texts] == [text.strip() for text in runners[1].texts]


def _linked(base, folder):
    folder.symlink_to(base)
    return folder


@pytest.mark.benchmark
def test_ctc_search_speed(data_root, tmp_path):
    """Prints error rates and speeds on one core, with and without a language model."""
    given = os.environ.get("BENCH_CTC")
    if not given:
        pytest.skip("BENCH_CTC=RUN:LM.arpa:DECODER.yaml is not set")
    pytest.importorskip("speechbrain", reason="pip install -e '.[bench]'")
    run, lm, decoder = given.split(":")
    corpus = os.environ.get("BENCH_CTC_CORPUS", "en_librispeech_mini")
    paths, references, speech_s, labels = _emissions(data_root, corpus, run, tmp_path)
    tuned = yaml.safe_load(Path(decoder).read_text())
    weights = {key: tuned[key] for key in ("lm_weight", "word_score")}
    words = _vocabulary(lm)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word} {' '.join(word)} |\n" for word in words))
    with_lm = {"lm": lm, **weights}
    for beam in (16, 64):
        own, size = {"labels": labels}, {"beam_size": beam}
        runners = []
        for name, fused in (("", {}), (" + LM", with_lm)):
            ours = {**size, **fused, "unknown_score": tuned["unknown_score"]}
            listed = {"words": words} if fused else {}
            exact = {"max_labels": None, "blank_collapse": None, "beam_threshold": None}
            runners += [
                Runner(f"ours{name}", "ours_ctc", {**own, "options": ours}),
                Runner(f"ours, nothing pruned{name}", "ours_ctc", {**own, "options": ours | exact}),
                Runner(f"torchaudio{name}", "flashlight", {**own, **size, **fused, **_spelling(lexicon, fused)}),
                Runner(f"SpeechBrain{name}", "speechbrain", {**own, **size, **fused, **listed}),
            ]
            if "BENCH_PEERS" in os.environ:
                options = {**own, **size, **fused, **listed}
                runners.append(Runner(f"pyctcdecode{name}", "pyctcdecode", options, python=os.environ["BENCH_PEERS"]))
        runners.append(Runner("ours, greedy", "ours_ctc", {**own, "options": None}))
        for runner in runners:
            runner.threads = 1
        take_turns(runners, _batches(paths))
        names = {runner.name for runner in runners}
        peers = [f"{peer}{name}" for name in ("", " + LM") for peer in ("torchaudio", "SpeechBrain", "pyctcdecode")]
        peers = [peer for peer in peers if peer in names]
        title = f"CTC, {corpus}, {len(paths)} utterances, beam {beam}, batches of {BATCH}, one thread"
        show(title, runners, references, speech_s, peers, "lower")


def _spelling(lexicon, fused):
    return {"lexicon": str(lexicon)} if fused else {}


def _vocabulary(lm):
    from ssl_asr.decoding.ngram import NGram

    return sorted(NGram.from_arpa(Path(lm)).vocabulary)


def _emissions(data_root, corpus, run, folder):
    """Log-probabilities of test utterances as files, longest first; references, total seconds and labels."""
    import torch

    import ssl_asr
    from ssl_asr.data.dataset import collate
    from ssl_asr.types import Example

    module = ssl_asr.load(run, device="cpu").module
    manifest = read_manifest(data_root / corpus / "test.jsonl")
    order = sorted(range(len(manifest)), key=lambda i: -manifest[i].duration)
    order = order[:: max(1, len(order) // UTTERANCES)]
    paths, references = [], []
    for first in range(0, len(order), BATCH):
        batch = collate([Example(manifest[i], read_waveform(manifest[i]), []) for i in order[first : first + BATCH]])
        with torch.inference_mode():
            log_probs_BFV, lengths_B = module.log_probs(batch)
        for utterance, own, frames in zip(batch.utterances, log_probs_BFV, lengths_B.tolist(), strict=True):
            log_probs = own[:frames].numpy().copy()
            # No text contains the unknown label.
            log_probs[:, 1] = -30.0
            paths.append(folder / f"{len(paths)}.npy")
            np.save(paths[-1], log_probs)
            references.append(utterance.text)
    speech_s = sum(manifest[i].duration for i in order)
    return paths, references, speech_s, [label or "" for label in module.labels]
