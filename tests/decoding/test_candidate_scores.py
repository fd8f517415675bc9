"""Scores of the most probable tokens from tables: Whisper's fused beam search against the automata on the host."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.fusion import state_tables
from ssl_asr.decoding.fusion.automata import Automaton, LabelBonus, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.label_arcs import trie_arcs
from ssl_asr.decoding.fusion.scorers import FusionScorer
from ssl_asr.decoding.fusion.tables import Fusion, LazyFusion
from ssl_asr.decoding.fusion.words import Words, prefixes
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.seq2seq import WhisperBeam, fold
from ssl_asr.decoding.step_model import AtLeast, Constraints, Suppression
from ssl_asr.decoding.timestamps import TimestampRules
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.attention import TransformerAttentionHead
from ssl_asr.types import Example, Utterance
from tests.decoding.automata import WORDS, every_kind, random_ngram, word_scores
from tests.decoding.host_scorer import HostScorer, score_on_the_host
from tests.waits import no_waits

END = 0
# As Whisper's: tokens without text, two tokens of one folded text, several spaces, pieces with and without a space.
LABELS = ["", "", "a", " a", "b", " b", " ", "ab", " ab", "c", " c", "a", "bc", " ba", "ca", "'", "  ", "  a", "", ""]
FRAMES, ROWS = 12, 5
BLOCKS = {"blocks": 0, "width": 6, "norm": "layer", "activation": "relu", "dropout": 0.0, "decoder_dropout": 0.0}
HEAD = TransformerAttentionHead(**BLOCKS, decoder_layers=2, heads=2, feed_forward=8, max_tokens=64)


class _Rounded:
    """A decoder whose logits are multiples of 1/2, so that many are equal."""

    def __init__(self, model):
        self.model = model
        self.max_tokens, self.begin = model.max_tokens, model.begin

    def step(self, tokens_BU, state):
        return (2 * self.model.step(tokens_BU, state)).round() / 2


def _decoder(seed):
    torch.manual_seed(seed)
    decoder = HEAD.build(dim=6, vocab_size=len(LABELS)).decoder.eval()
    # Sharp outputs, so that texts end at different lengths.
    decoder.net.embed_tokens.weight.data[END].mul_(2)
    return decoder


def _searched(decoder, seed, scorer, **options):
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, FRAMES + 1, (ROWS,), generator=generator)
    constraints = Constraints(
        end_id=END,
        limits=[25, 3, 17, 1, 12],
        suppression=Suppression(always=(4,), first=(6, END)),
        rules=[
            AtLeast(tokens=seed % 3, end_id=END),
            *[TimestampRules(begin=18, no_timestamps=17, end=END, latest_first=1)][: seed % 2],
        ],
    )
    size = 1 + seed % 3
    prompts = [[draw.randrange(len(LABELS)) for _ in range(size)] for _ in range(ROWS)]
    h = 2 * torch.randn(ROWS, FRAMES, 6, generator=generator)
    return beam_search(decoder, h, lengths, prompts, constraints=constraints, scorers=[scorer], **options)


def _assert_equal(found, expected):
    """Returns the number of hypotheses. The tokens are arbitrary if no hypothesis is possible."""
    count = 0
    for own, theirs in zip(found, expected, strict=True):
        ours, others = ([one for one in every if one.score > -1e29] for every in (own, theirs))
        assert [one.tokens for one in ours] == [one.tokens for one in others]
        assert [one.score for one in ours] == pytest.approx([one.score for one in others], abs=1e-4)
        count += len(ours)
    return count


@pytest.mark.parametrize("listed", [False, True], ids=["tables", "keys"])
@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_hypotheses_are_those_of_the_automata_on_the_host(seed, listed, monkeypatch):
    monkeypatch.setattr(state_tables, "_MAX_LABELS", 10 if seed % 2 else 100)
    if listed:
        for kind in (Words, LabelNGram):
            monkeypatch.setattr(kind, "table", lambda self, device: None)
    counts = []
    for place, parts in enumerate(every_kind(LABELS, seed)):
        beams, candidates = 1 + (seed + place) % 5, (1, 3, 6, 100)[(seed + place) % 4]
        options = {"beam_size": beams, "length_penalty": float(place % 2), "n_best": beams}
        fusion = Fusion(parts, size=len(LABELS), whole_rows=False)
        assert (fusion._reached is not None) == (listed and any(isinstance(one, Words | LabelNGram) for one in parts))
        expected = _searched(
            _decoder(seed), seed, HostScorer(parts, rows=ROWS * beams, candidates=candidates), **options
        )
        for every in (None, 3):
            scorer = FusionScorer(fusion, rows=ROWS * beams, candidates=candidates)
            counts.append(
                _assert_equal(_searched(_decoder(seed), seed, scorer, check_every=every, **options), expected)
            )
    assert sum(counts) > 1.5 * ROWS * len(counts), counts


@pytest.mark.parametrize("seed", range(6))
@torch.inference_mode()
def test_equal_scores_are_ranked_as_on_the_host(seed):
    """All scores of the automata are sums of powers of two, so that both ways compute the same numbers."""
    words = word_scores(LABELS, None, vocabulary={"ab", "cab", "b"}, word_score=0.5, unknown_score=-1.0)
    parts = [words, Hotwords(LABELS, ["ab", "a b"], bonus=0.25), LabelBonus(LABELS, bonus=0.5)]
    options = {"beam_size": 4, "length_penalty": 0.0, "n_best": 4}
    expected = _searched(_Rounded(_decoder(seed)), seed, HostScorer(parts, rows=4 * ROWS, candidates=7), **options)
    scorer = FusionScorer(Fusion(parts, size=len(LABELS)), rows=4 * ROWS, candidates=7)
    found = _searched(_Rounded(_decoder(seed)), seed, scorer, **options)
    assert _assert_equal(found, expected) > ROWS


@torch.no_grad()
def test_no_step_of_the_candidates_waits_for_the_device():
    for parts in every_kind(LABELS, 2):
        scorer = FusionScorer(Fusion(parts, size=len(LABELS)), rows=6, candidates=5)
        generator = torch.Generator().manual_seed(1)
        log_probs = torch.randn(6, len(LABELS), generator=generator).log_softmax(-1)
        with no_waits():
            for _ in range(4):
                scores = scorer.scores(log_probs, END)
                scorer.select(torch.randint(6, (6,), generator=generator), scores.argmax(-1))
            scorer.keep(torch.tensor([0, 1, 4]))
            assert scorer.scores(log_probs[:3], END).shape == (3, len(LABELS))


class Recorder(Automaton[tuple[int, ...]]):
    """Keys are all labels so far. Label 2 is forbidden. Whole rows must not be asked for."""

    begin = ()

    def __init__(self):
        self.asked, self.advanced, self.fetched = [], [], []

    def rows(self, keys):
        raise AssertionError("a whole row was asked for")

    def scores(self, key, labels):
        self.asked.append((key, tuple(labels)))
        return np.array([-math.inf if label == 2 else float(len(key) + label) for label in labels])

    def prefetch(self, keys):
        self.fetched.append(list(keys))

    def advance(self, key, label):
        assert label != 2
        self.advanced.append((key, label))
        return (*key, label)

    def end(self, key):
        return -float(len(key))


def test_automata_without_tables_are_asked_for_the_candidates_only():
    own, size = Recorder(), 50_000
    labels = [""] * size
    fusion = Fusion([own, LabelBonus(labels, bonus=0.5)], size=size, whole_rows=False)
    scorer = FusionScorer(fusion, rows=4, candidates=3)
    log_probs = torch.full((4, size), -9.0)
    log_probs[:, torch.tensor([2, 30_000, 7])] = torch.tensor([-1.0, -2.0, -3.0])
    for step, rows in enumerate(([0, 0, 1, 3], [0, 1, 1, 2])):
        scores = scorer.scores(log_probs, END)
        assert scores[0, [30_000, 7, END]].tolist() == [step + 30_000.5, step + 7.5, -step]
        assert (scores[:, 2] == -math.inf).all()
        assert int((scores > -math.inf).sum()) == 4 * 3
        # Beams that are pruned: their tokens are forbidden, or none of the candidates.
        scorer.select(torch.tensor(rows), torch.tensor([[30_000, 7, 2, 11], [7, 7, 7, 7]][step]))
    assert own.asked == [((), (2, 30_000, 7)), *[(key, (2, 30_000, 7)) for key in [(30_000,), (7,), ()]]]
    assert own.fetched == [[()] * 4, [(30_000,), (7,), (), ()]]
    assert own.advanced == [((), 30_000), ((), 7), ((30_000,), 7), ((7,), 7), ((), 7)]
    # Keys that no beam has are forgotten.
    assert fusion._reached._keys == [((30_000, 7),), ((7, 7),), ((7,),)]
    scorer.keep(torch.tensor([3, 1]))
    assert scorer.scores(log_probs[:2], END)[:, END].tolist() == [-1.0, -2.0]
    assert FusionScorer(fusion, rows=1, candidates=3).scores(log_probs[:1], END)[0, END] == 0


def test_tables_are_built_at_the_first_search_and_kept(monkeypatch):
    built = []
    table = Words.table
    monkeypatch.setattr(Words, "table", lambda self, device: built.append(device) or table(self, device))
    lazy = LazyFusion([word_scores(LABELS, random_ngram(2, 0))], size=len(LABELS))
    cpu = torch.device("cpu")
    assert not built
    assert lazy.on(cpu) is lazy.on(cpu)
    assert built == [cpu]
    assert LazyFusion([], size=3).on(cpu) is None


@pytest.mark.parametrize("seed", range(5))
def test_arcs_of_a_trie_are_all_pairs_of_a_prefix_and_a_text(seed):
    draw = random.Random(seed)

    def texts(count, longest):
        return {"".join(draw.choice("abcé😀") for _ in range(draw.randint(1, longest))) for _ in range(count)}

    nodes = ["", *sorted(prefixes(texts(60, 7)))]
    columns = ["", " ", " a", "zz", *sorted(texts(40, 3))]
    draw.shuffle(columns)
    arcs = trie_arcs(nodes, columns)
    found = sorted(zip(arcs.states_M.tolist(), arcs.columns_M.tolist(), arcs.nexts_M.tolist(), strict=True))
    ids = {text: node for node, text in enumerate(nodes)}
    assert found == sorted(
        (node, column, ids[text + piece])
        for text, node in ids.items()
        for column, piece in enumerate(columns)
        if piece and text + piece in ids
    )
    assert len(trie_arcs([""], columns).nexts_M) == 0 == len(trie_arcs(nodes, [""]).nexts_M)


def _assert_equal_to_the_host(module, batch, option, monkeypatch):
    """Returns the hypotheses."""
    module.set_decoder(option)
    parts = option.parts(module.tokenizer.vocab_size, module.tokenizer.spell)
    with torch.inference_mode():
        found = module.transcribe(batch)
        with monkeypatch.context() as patch:
            score_on_the_host(patch, parts)
            expected = module.transcribe(batch)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    for own, theirs in zip(found, expected, strict=True):
        pairs = [(own, theirs), *zip(own.alternatives, theirs.alternatives, strict=True)]
        assert [one.text for one, _ in pairs] == [other.text for _, other in pairs]
        assert [one.score for one, _ in pairs] == pytest.approx([other.score for _, other in pairs], abs=1e-4)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "ab c"},
        {"min_tokens": 4, "beam_size": 2},
        {"lm_unit": "label", "max_labels": 6},
        {"lm": None, "word_score": 0.5, "n_best": 3},
        {"suppress": False, "unknown_score": None},
    ],
)
def test_texts_of_whisper_are_those_of_the_host(toy_checkpoints, tmp_path, monkeypatch, changes):
    draw = random.Random(0)
    texts = [[draw.choice([*WORDS, "c"]) for _ in range(6)] for _ in range(30)]
    estimate(texts, order=3).model.write_arpa(tmp_path / "lm.arpa")
    option = WhisperBeam(
        suppress=True,
        max_tokens_per_s=None,
        beam_size=3,
        length_penalty=1.0,
        n_best=2,
        max_tokens=12,
        lm=str(tmp_path / "lm.arpa"),
        lm_weight=0.5,
        hotwords=["ab A", "c!"],
        hotword_score=1.0,
    )
    module = load_model(str(toy_checkpoints["whisper"]), InferenceOptions())
    utterances = [
        Utterance(str(n), "", 0.5 * n, tags={"prompt": "b"} if n == 2 and "prompt" in changes else {})
        for n in (1, 2, 3)
    ]
    examples = [Example(one, torch.randn(int(16000 * one.duration)), []) for one in utterances]
    _assert_equal_to_the_host(module, collate(examples), replace(option, **changes), monkeypatch)


def test_texts_of_real_speech_are_those_of_the_host(whisper_tiny_en, data_root, tmp_path, monkeypatch):
    folder = data_root / "en_an4"
    texts = [fold(one.text).split() for one in read_manifest(folder / "train.jsonl")]
    estimate(texts, order=3).model.write_arpa(tmp_path / "lm.arpa")
    utterances = sorted(read_manifest(folder / "test.jsonl"), key=lambda utterance: utterance.duration)[20:24]
    batch = collate([Example(one, read_waveform(one), []) for one in utterances])
    option = WhisperBeam(
        suppress=True,
        max_tokens_per_s=40.0,
        beam_size=4,
        length_penalty=1.0,
        n_best=4,
        lm=str(tmp_path / "lm.arpa"),
        lm_weight=0.4,
        hotwords=["rubout", "erase", "oh five"],
    )
    module = load_model(str(whisper_tiny_en), InferenceOptions(window="real"))
    fused = _assert_equal_to_the_host(module, batch, option, monkeypatch)
    module.set_decoder(replace(option, lm=None, hotwords=[]))
    with torch.inference_mode():
        plain = module.transcribe(batch)
    assert [one.text for one in fused] != [one.text for one in plain], "the automata must change a text"
