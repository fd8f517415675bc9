"""Tables of automata on the device against the automata themselves, over random models, texts and vocabularies."""

import math
import random

import pytest
import torch

from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding import ctc_beam
from ssl_asr.decoding.ctc import CtcBeam
from ssl_asr.decoding.ctc_beam import prefix_beam_search
from ssl_asr.decoding.fusion import state_tables
from ssl_asr.decoding.fusion.automata import LabelBonus, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.reached import ReachedRows
from ssl_asr.decoding.fusion.scorers import FusionScorer
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.ngram_table import NGramTable
from tests.decoding.automata import CHARACTERS, PIECES, WORDS, every_kind, random_ngram, word_scores
from tests.decoding.options import CTC_BEAM, FUSION
from tests.waits import no_waits

CPU = torch.device("cpu")


@pytest.mark.parametrize("marks", [{}, {"unknown": False}, {"end": False}, {"begin": False, "unknown": False}])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_log_probabilities_are_those_of_the_model(order, marks):
    for seed in range(5):
        model = random_ngram(order, seed, **marks)
        table = NGramTable(model.arrays(), weight=0.7, device=CPU)
        draw = random.Random(seed)
        texts = [[draw.choice([*WORDS, "other", "<s>"]) for _ in range(12)] for _ in range(20)]
        states, theirs = torch.full((20,), table.begin), [model.begin] * 20
        for at in range(12):
            ends = [0.7 * model.end(state) for state in theirs]
            assert table.ends(states).tolist() == pytest.approx(ends, rel=1e-6, abs=1e-6)
            ids = torch.tensor([model.arrays().ids.get(text[at], table.unknown) for text in texts])
            found, states = table.lookup(states, ids)
            results = [model.score(state, text[at]) for state, text in zip(theirs, texts, strict=True)]
            assert found.tolist() == pytest.approx([0.7 * score for score, _ in results], rel=1e-6, abs=1e-6)
            theirs = [state for _, state in results]


def _check(parts, labels, seed, steps=12, beams=16):
    fusion, rows = Fusion(parts, size=len(labels)), ReachedRows(parts, size=len(labels), device=CPU)
    assert fusion._reached is None
    every = torch.arange(len(labels))[None, None]
    ours, theirs = fusion.begin(3, beams), torch.zeros(1, 3, beams, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        torch.testing.assert_close(fusion.ends(ours), rows.ends(theirs), rtol=1e-5, atol=1e-5)
        scores, nexts = fusion.extend(ours, every)
        expected, their_nexts = rows.extend(theirs, every)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        # As in a search, forbidden labels are not followed.
        chance = torch.rand(scores.shape, generator=generator).masked_fill(expected == -math.inf, -1.0)
        best = chance.max(-1, keepdim=True)
        chosen = [own.gather(-1, best.indices)[..., 0] for own in nexts]
        ours = torch.where(best.values[..., 0] >= 0, torch.stack(chosen), ours) if chosen else ours
        theirs = their_nexts[0].gather(-1, best.indices)[None, ..., 0]
        rows.arrive(theirs)
        # A few candidates, other ones for each utterance, score as in the whole row.
        few = torch.randint(len(labels), (3, 1, 4), generator=generator)
        torch.testing.assert_close(fusion.extend(ours, few)[0], rows.extend(theirs, few)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("labels", [CHARACTERS, PIECES], ids=["characters", "pieces"])
@pytest.mark.parametrize("seed", range(4))
def test_tables_score_as_their_automata(labels, seed, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(state_tables, "_MAX_CELLS", 0)
    for parts in every_kind(labels, seed):
        _check(parts, labels, seed)


def _fused(kind, seed=0):
    model = random_ngram(3, seed)
    words = {"vocabulary": model.vocabulary, "unknown_log_prob": model.unknown_log_prob, "unknown_alike": True}
    hotwords = Hotwords(CHARACTERS, ["ab ba", "cab"], bonus=0.7)
    over_labels = random_ngram(4, seed, words=["a", "b", "c", "▁"])
    return {
        "words": [word_scores(CHARACTERS, model, **words), hotwords, LabelBonus(CHARACTERS, bonus=0.1)],
        "labels": [LabelNGram(over_labels, CHARACTERS, weight=0.5)],
        "bonus": [LabelBonus(CHARACTERS, bonus=0.2)],
    }[kind]


@pytest.mark.parametrize("max_labels", [None, 3])
@pytest.mark.parametrize("kind", ["words", "labels", "bonus", None])
def test_no_step_of_a_ctc_search_waits_for_the_device(kind, max_labels, monkeypatch):
    log_probs = torch.randn(3, 20, len(CHARACTERS), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    fusion = None if kind is None else Fusion(_fused(kind), size=len(CHARACTERS))
    own = {"beam_size": 5, "blank": 0, "fusion": fusion, "max_labels": max_labels, "n_best": 2}
    options = own | {"blank_collapse": 0.9, "beam_threshold": 12.0}
    lengths = torch.tensor([20, 0, 13])
    expected = prefix_beam_search(log_probs, lengths, **options)
    run, guarded = ctc_beam._Search.run, []

    def guard(search):
        with no_waits():
            run(search)
        guarded.append(search.steps)

    monkeypatch.setattr(ctc_beam._Search, "run", guard)
    assert prefix_beam_search(log_probs, lengths, **options) == expected
    assert guarded[0] > 10
    for row, length in enumerate(lengths.tolist()):
        (alone,) = prefix_beam_search(log_probs[row : row + 1, :length], lengths[row : row + 1], **options)
        assert [(one.tokens, one.frames) for one in alone] == [(one.tokens, one.frames) for one in expected[row]]
        assert [one.score for one in alone] == pytest.approx([one.score for one in expected[row]], abs=1e-4)


@pytest.mark.parametrize("whole_rows", [True, False])
def test_the_guard_finds_scores_that_are_computed_on_the_host(whole_rows, monkeypatch):
    monkeypatch.setattr(LabelNGram, "table", lambda self, device: None)
    scorer = FusionScorer(Fusion(_fused("labels"), size=len(CHARACTERS), whole_rows=whole_rows), rows=2)
    log_probs = torch.zeros(2, len(CHARACTERS))
    scorer.scores(log_probs, 0)
    with pytest.raises(AssertionError, match="waits for the GPU"), no_waits():
        scorer.select(torch.tensor([0, 1]), torch.tensor([3, 4]))


@pytest.mark.parametrize("kind", ["words", "labels", "bonus"])
def test_no_step_of_the_scorer_of_a_beam_search_waits_for_the_device(kind):
    generator = torch.Generator().manual_seed(1)
    scorer = FusionScorer(Fusion(_fused(kind), size=len(CHARACTERS)), rows=6)
    log_probs = torch.randn(6, len(CHARACTERS), generator=generator).log_softmax(-1)
    with no_waits():
        for _ in range(4):
            scores = scorer.scores(log_probs, 0)
            scorer.select(torch.randint(6, (6,), generator=generator), scores.argmax(-1))
        scorer.keep(torch.tensor([0, 1, 4]))
        assert scorer.scores(log_probs[:3], 0).shape == (3, len(CHARACTERS))


@pytest.mark.parametrize("unit", ["word", "label"])
def test_hypotheses_on_real_texts_are_those_of_the_automata(unit, data_root, tmp_path, monkeypatch):
    """A 3-gram of LibriSpeech's texts, and noisy log-probabilities that spell others."""
    texts = {
        split: [one.text.lower() for one in read_manifest(data_root / "en_librispeech_mini" / f"{split}.jsonl")]
        for split in ("train", "test")
    }
    labels = [None, None, " ", *"abcdefghijklmnopqrstuvwxyz'"]
    sentences = [text.split() if unit == "word" else list(text.replace(" ", "▁")) for text in texts["train"]]
    estimate(sentences, order=3).model.write_arpa(tmp_path / "lm.arpa")
    draw, logits = torch.Generator().manual_seed(0), []
    for text in sorted(texts["test"], key=len)[20:100:20]:
        path = [label for letter in text if letter in labels for label in (labels.index(letter), 0)]
        logits.append(2.0 * torch.randn(len(path), len(labels), generator=draw))
        logits[-1][torch.arange(len(path)), path] += 4.0
    log_probs = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True).log_softmax(-1)
    lengths = torch.tensor([len(own) for own in logits])
    fused = {"lm": str(tmp_path / "lm.arpa"), "lm_unit": unit, "hotwords": ["the house", "prince"]}
    options = CtcBeam(**(FUSION | CTC_BEAM | fused | {"beam_size": 10, "n_best": 4}))
    found = options.build(labels)(log_probs, lengths)
    for kind in (Words, LabelNGram, Hotwords):
        monkeypatch.setattr(kind, "table", lambda self, device: None)
    expected = options.build(labels)(log_probs, lengths)
    for own, theirs in zip(found, expected, strict=True):
        assert [(one.tokens, one.frames) for one in own] == [(one.tokens, one.frames) for one in theirs]
        assert [one.fused for one in own] == pytest.approx([one.fused for one in theirs], rel=1e-4)
        assert [one.score for one in own] == pytest.approx([one.score for one in theirs], rel=1e-4)
