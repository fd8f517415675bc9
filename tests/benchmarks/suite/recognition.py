"""Searches and transcription, each recognizer in its own process, in turns of one batch (see `turns`)."""

import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np

from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.decoding.fusion.automata import lm_token
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.metrics.edit import Edits, word_edits
from ssl_asr.models.checkpoints import resolve_checkpoint
from tests.benchmarks import test_recognition
from tests.benchmarks.suite.rows import Options, Row
from tests.benchmarks.turns import REPO, Runner, take_turns

LABELS = ["", "⁇", " ", *"abcdefghijklmnopqrstuvwxyz'"]
BATCH = 8
BEAM = 10


def data_root() -> Path:
    """Folder of real speech.

    Raises:
        AssertionError: There is none.
    """
    root = Path(os.environ.get("SSL_ASR_DATA") or REPO.parent / "shared" / "data")
    assert (root / "en_librispeech_mini" / "test.jsonl").is_file(), f"no speech in {root}: set SSL_ASR_DATA"
    return root


def _rows(row_id: str, what: str, runners: list[Runner], references: list[str], normalizer: str) -> list[Row]:
    """A row for each recognizer but the first, which is ours. The check is the number of equal texts, and both WERs."""
    ours, *peers = runners
    rows = []
    for peer in peers:
        same = sum(a.strip() == b.strip() for a, b in zip(ours.texts, peer.texts, strict=True))
        ours_wer, their_wer = (_wer(references, one.texts, normalizer) for one in (ours, peer))
        check = f"{same} of {len(references)} texts equal, WER {ours_wer:.2f} and {their_wer:.2f} %"
        own = {"ours": ours.seconds, "theirs": peer.seconds, "unit": "s", "ratio": peer.seconds / ours.seconds}
        rows.append(Row(id=row_id, what=what, peer=peer.name, spread=None, check=check, **own))
    return rows


def _wer(references: list[str], texts: list[str], normalizer: str) -> float:
    """WER in percent."""
    normalize, total = get_normalizer(normalizer), Edits()
    for reference, text in zip(references, texts, strict=True):
        total += word_edits(normalize(reference, "en"), normalize(text, "en"))
    return 100 * total.rate


def _posteriors(folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """Files of noisy log-probabilities, and the texts of LibriSpeech that they spell, a blank after each letter."""
    texts = [u.text.lower() for u in read_manifest(data_root() / "en_librispeech_mini" / "test.jsonl")][:count]
    draw, paths = np.random.default_rng(0), []
    for number, text in enumerate(texts):
        path = [i for letter in text if letter in LABELS for i in (LABELS.index(letter), 0)]
        logits_FV = draw.standard_normal((len(path), len(LABELS)))
        logits_FV[np.arange(len(path)), path] += 4.0
        # No text contains the unknown label.
        logits_FV[:, 1] = -30.0
        log_probs_FV = logits_FV - np.log(np.exp(logits_FV).sum(1, keepdims=True))
        paths.append(folder / f"{number}.npy")
        np.save(paths[-1], log_probs_FV.astype(np.float32))
    return paths, texts


def b16(options: Options) -> list[Row]:
    """CTC beam search without a language model."""
    paths, texts = _posteriors(Path(tempfile.mkdtemp()), 4 if options.quick else 48)
    batches = [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]
    rows = []
    for beam in (BEAM, 10 * BEAM):
        settings = {"labels": LABELS, "beam_size": beam}
        runners = [Runner("ours", "ours_ctc", {"labels": LABELS, "options": {"beam_size": beam}})]
        if importlib.util.find_spec("flashlight"):
            runners.append(Runner("torchaudio (flashlight)", "flashlight", settings))
        if importlib.util.find_spec("speechbrain"):
            runners.append(Runner("SpeechBrain", "speechbrain", settings))
        if "BENCH_PEERS" in os.environ:
            runners.append(Runner("pyctcdecode", "pyctcdecode", settings, python=os.environ["BENCH_PEERS"]))
        what = f"CTC beam {beam}, no language model, {len(paths)} utterances, one thread"
        take_turns(_on_one_thread(runners), batches)
        rows += _rows("B16", what, runners, texts, "lower")
    return rows


def _on_one_thread(runners: list[Runner]) -> list[Runner]:
    for runner in runners:
        runner.threads = 1
    return runners


def p2(options: Options) -> list[Row]:
    """CTC beam search with n-gram models, against the same search with rows of the model computed on the host.

    The models are those of the texts of LibriSpeech's train split: words of order 3, also against pyctcdecode, and
    characters of order 5.
    """
    folder = Path(tempfile.mkdtemp())
    paths, texts = _posteriors(folder, 4 if options.quick else 48)
    batches = [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]
    corpus = [u.text.lower() for u in read_manifest(data_root() / "en_librispeech_mini" / "train.jsonl")]
    rows = []
    for unit, order in (("word", 3), ("label", 5)):
        units = [text.split() if unit == "word" else [lm_token(letter) for letter in text] for text in corpus]
        model, lm = estimate(units, order=order).model, folder / f"{unit}.arpa"
        model.write_arpa(lm)
        fused = {"lm": str(lm), "lm_weight": 0.5, "word_score": 1.0} if unit == "word" else {"lm": str(lm)}
        ours = {"labels": LABELS, "options": {"beam_size": BEAM, "lm_unit": unit, **fused}}
        runners = [Runner("ours", "ours_ctc", ours), Runner("rows on the host", "ours_ctc", {**ours, "tables": False})]
        if "BENCH_PEERS" in os.environ and unit == "word":
            settings = {"labels": LABELS, "beam_size": BEAM, "words": sorted(model.vocabulary), **fused}
            runners.append(Runner("pyctcdecode", "pyctcdecode", settings, python=os.environ["BENCH_PEERS"]))
        take_turns(_on_one_thread(runners), batches)
        assert runners[0].texts == runners[1].texts
        name = f"{'words' if unit == 'word' else 'characters'}, order {order}, {sum(model.counts()):,} n-grams"
        what = f"CTC beam {BEAM}, {name}, {len(paths)} utterances, one thread"
        rows += _rows("P2", what, runners, texts, "lower")
    return rows


def _whisper(options: Options, row_id: str, beams: int) -> list[Row]:
    folder, base = Path(tempfile.mkdtemp()), str(resolve_checkpoint("openai/whisper-tiny.en"))
    test_recognition.UTTERANCES = 3 if options.quick else 16
    paths, references, _ = test_recognition._speech(data_root(), "en_librispeech_mini", folder)
    batches = [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]
    ours = {"model": base, "beams": beams, "batch": BATCH}
    whole = Runner("ours, 30 s", "ours_whisper", {**ours, "window": "30s", "tail_s": None})
    real = {**ours, "window": "real", "tail_s": 4.0, "max_tokens_per_s": 10.0}
    runners = [
        whole,
        Runner("transformers", "transformers_whisper", {"model": base, "beams": beams}),
        Runner("ours, real frames + 4 s", "ours_whisper", real),
    ]
    if importlib.util.find_spec("faster_whisper"):
        own = {"model": test_recognition._converted(test_recognition._linked(base, folder / "base")), "beams": beams}
        for kind in ("float32", "int8"):
            options_of_kind = {**own, "compute_type": kind, "batched": False}
            runners.append(Runner(f"faster-whisper {kind}", "faster_whisper", options_of_kind))
    what = f"Whisper tiny.en, {'greedy' if beams == 1 else f'beam {beams}'}, 30 s, {len(paths)} utterances"
    take_turns(runners, batches)
    assert [text.strip() for text in whole.texts] == [text.strip() for text in runners[1].texts]
    return _rows(row_id, what, runners, references, "whisper_english")


def b17(options: Options) -> list[Row]:
    """Whisper, greedy search."""
    return _whisper(options, "B17", 1)


def b18(options: Options) -> list[Row]:
    """Whisper, beam search."""
    return _whisper(options, "B18", 5)
