"""CTC prefix beam search with shallow fusion, after a check against the same search on the CPU."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from ssl_asr.decoding.ctc_beam import CtcHypothesis, prefix_beam_search
from ssl_asr.decoding.fusion.automata import Automaton, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.types import Seconds
from tests.gpu.steps import Setup, Step

FRAMES_PER_S = 50
LABELS = [None, None, " ", *"abcdefghijklmnopqrstuvwxyz'"]


def make_sentences(count: int, vocabulary: int) -> list[list[str]]:
    """Sentences of ten random words, a few words far more frequent than others. The same on every machine."""
    draw = random.Random(1)
    words = ["".join(draw.choices(LABELS[3:], k=draw.randint(1, 8))) for _ in range(vocabulary)]
    return [[words[int(vocabulary * draw.random() ** 3)] for _ in range(10)] for _ in range(count)]


def make_parts(kind: str, sentences: list[list[str]]) -> list[Automaton[Any]]:
    """A 3-gram over words and hotwords (``words``), a 5-gram over labels (``labels``), or nothing (``plain``)."""
    if kind == "plain":
        return []
    if kind == "labels":
        model = estimate([list("▁".join(words)) for words in sentences], order=5).model
        return [LabelNGram(model, LABELS, weight=0.5)]
    model = estimate(sentences, order=3).model
    words = Words(
        LABELS,
        model=model,
        weight=0.5,
        word_score=0.1,
        unknown_score=-10.0,
        vocabulary=model.vocabulary,
        unknown_log_prob=model.unknown_log_prob,
        unknown_alike=True,
    )
    return [words, Hotwords(LABELS, [" ".join(sentences[0][:2]), sentences[1][0]], bonus=0.5)]


def make_log_probs(
    durations: Sequence[Seconds], sentences: list[list[str]], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy log-probabilities that spell sentences, a blank after each letter, and their lengths on the CPU."""
    draw = torch.Generator().manual_seed(1)
    lengths_B = torch.tensor([int(FRAMES_PER_S * duration) for duration in durations])
    logits_BFV = torch.randn(len(lengths_B), int(lengths_B.max()), len(LABELS), generator=draw)
    for row in range(len(lengths_B)):
        letters = " ".join(word for words in sentences[row : row + 40] for word in words)
        path = [label for letter in letters for label in (LABELS.index(letter), 0)][: logits_BFV.shape[1]]
        logits_BFV[row, torch.arange(len(path)), path] += 4.0
    return logits_BFV.log_softmax(-1).to(device), lengths_B


def check(found: list[list[CtcHypothesis]], expected: list[list[CtcHypothesis]]) -> None:
    """Compare the best hypotheses.

    Raises:
        AssertionError: Labels, frames or scores differ.
    """
    for row, ((ours, *_), (theirs, *_)) in enumerate(zip(found, expected, strict=True)):
        assert (ours.tokens, ours.frames) == (theirs.tokens, theirs.frames), f"row {row} differs from the CPU"
        ours_2, theirs_2 = torch.tensor([[one.acoustic, one.fused] for one in (ours, theirs)])
        torch.testing.assert_close(ours_2, theirs_2, rtol=1e-4, atol=1e-2)


def search_step(setup: Setup, durations: Sequence[Seconds], *, kind: str) -> Step:
    """A search with 16 beams. The first utterances are compared with the CPU first.

    Args:
        kind: See `make_parts`.

    Raises:
        AssertionError: The results differ.
    """
    sentences = make_sentences(200 if setup.tiny else 20_000, 100 if setup.tiny else 5_000)
    parts = make_parts(kind, sentences)
    log_probs_BFV, lengths_B = make_log_probs(durations, sentences, setup.device)

    def search(fusion: Fusion | None, rows: int, device: str) -> list[list[CtcHypothesis]]:
        return prefix_beam_search(
            log_probs_BFV[:rows].to(device),
            lengths_B[:rows],
            beam_size=16,
            blank=0,
            fusion=fusion,
            max_labels=None,
            blank_collapse=0.999,
            beam_threshold=15.0,
            n_best=1,
        )

    devices = (setup.device, "cpu")
    fusion, on_cpu = (Fusion(parts, size=len(LABELS), device=device) if parts else None for device in devices)
    check(search(fusion, 4, setup.device), search(on_cpu, 4, "cpu"))
    return lambda: search(fusion, len(lengths_B), setup.device)
