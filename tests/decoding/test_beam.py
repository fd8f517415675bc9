"""Beam search against exhaustive search and transformers, and CTC prefix scores against the definition of CTC."""

import itertools
import math

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.coverage import CoverageScorer
from ssl_asr.decoding.ctc import collapse
from ssl_asr.decoding.ctc_prefix import CtcPrefixScorer
from ssl_asr.decoding.fusion.automata import LabelBonus
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.scorers import FusionScorer
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.step_model import Constraints, Suppression
from ssl_asr.models.attention import GruDecoder, TransformerAttentionHead
from ssl_asr.models.whisper import WhisperBackbone
from tests.toys import END, NO_TIMESTAMPS, START

LABELS = [None, None, "a", "b", " "]
SIZE = len(LABELS)


@pytest.fixture
def decoder():
    torch.manual_seed(3)
    made = GruDecoder(
        dim=6,
        vocab_size=SIZE,
        embedding=4,
        width=8,
        layers=1,
        dropout=0.0,
        attention_width=4,
        channels=2,
        kernel=2,
    )
    with torch.no_grad():
        made.out.weight.mul_(6)
    return made.eval()


@pytest.fixture
def states():
    return torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1)) * 2, torch.tensor([7, 4, 6])


def _log_prob(decoder, h_FD, tokens, ended):
    """Log-probability of a text by teacher forcing. `ended` adds the end token."""
    inputs = torch.tensor([[0, *tokens]])
    log_probs = decoder.logits(decoder(inputs, h_FD[None], torch.tensor([len(h_FD)])))[0].log_softmax(-1)
    targets = [*tokens, 0] if ended else list(tokens)
    return sum(float(log_probs[i, target]) for i, target in enumerate(targets))


def _every_text(limit):
    """All texts within the limit. Texts that reach it have no end token."""
    for length in range(limit + 1):
        for tokens in itertools.product(range(1, SIZE), repeat=length):
            yield tokens, length < limit


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beam_finds_same_texts_as_exhaustive_search(decoder, states, length_penalty):
    h, lengths = states
    limits = [3, 2, 3]
    with torch.inference_mode():
        found = beam_search(
            decoder,
            h,
            lengths,
            [[0]] * 3,
            constraints=Constraints(end_id=0, limits=limits),
            beam_size=200,
            length_penalty=length_penalty,
            n_best=5,
        )
        for row, limit in enumerate(limits):
            scored = []
            for tokens, ended in _every_text(limit):
                score = _log_prob(decoder, h[row, : lengths[row]], tokens, ended)
                scored.append((score / (len(tokens) + ended) ** length_penalty, list(tokens)))
            expected = sorted(scored, reverse=True)[:5]
            assert [one.tokens for one in found[row]] == [tokens for _, tokens in expected]
            assert [one.score for one in found[row]] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_suppressed_tokens_are_in_no_text_or_do_not_begin_one(decoder, states):
    """Token 2 is never chosen, and tokens 3 and 0, the end, not as the first. The texts are the best of all others."""
    h, lengths = states
    constraints = Constraints(end_id=0, limits=[3] * 3, suppression=Suppression(always=(2,), first=(3, 0)))
    options = {"beam_size": 200, "length_penalty": 0.0, "n_best": 5}
    with torch.inference_mode():
        found = beam_search(decoder, h, lengths, [[0]] * 3, constraints=constraints, **options)
        for row in range(3):
            scored = [
                (_log_prob(decoder, h[row, : lengths[row]], tokens, ended), list(tokens))
                for tokens, ended in _every_text(3)
                if tokens and 2 not in tokens and tokens[0] != 3
            ]
            assert [one.tokens for one in found[row]] == [tokens for _, tokens in sorted(scored, reverse=True)[:5]]
        greedy = greedy_decode(decoder, h, lengths, [[0]] * 3, constraints=constraints)
    assert all(row.tokens and 2 not in row.tokens and row.tokens[0] != 3 for row in greedy)
    assert any(3 in one.tokens for row in found for one in row)


def test_beam_of_one_equals_greedy_and_batch_composition_does_not_matter(decoder, states):
    h, lengths = states
    options = {"length_penalty": 1.0, "n_best": 1, "constraints": Constraints(end_id=0, limits=[9] * 3)}
    with torch.inference_mode():
        plain = greedy_decode(decoder, h, lengths, [[0]] * 3, constraints=options["constraints"])
        one = beam_search(decoder, h, lengths, [[0]] * 3, beam_size=1, **options)
        assert [row[0].tokens for row in one] == [row.tokens for row in plain]
        together = beam_search(decoder, h, lengths, [[0]] * 3, beam_size=4, **options)
        for row in range(3):
            own = h[row : row + 1, : lengths[row]], lengths[row : row + 1]
            single = options | {"constraints": Constraints(end_id=0, limits=[9])}
            alone = beam_search(decoder, *own, [[0]], beam_size=4, **single)
            assert alone[0][0].tokens == together[row][0].tokens


@pytest.mark.parametrize("beams", [2, 5])
def test_texts_equal_transformers_beam_search(toy_checkpoints, beams):
    backbone = WhisperBackbone(
        source="", revision=None, window="30s", tail_s=0.0, train_tail_s=None, recommended_freeze="none"
    )
    model = backbone.load_seq2seq(toy_checkpoints["whisper"]).eval()
    reference = WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"]).eval()
    with torch.no_grad():
        model.net.embed_tokens.weight[END] *= 2.5
        reference.model.decoder.embed_tokens.weight[END] *= 2.5
    suppression = Suppression(
        always=tuple(model.generation["suppress_tokens"]), first=tuple(model.generation["begin_suppress_tokens"])
    )
    waveform = torch.randn(4, 24000) * torch.tensor([[0.1], [1.0], [0.01], [0.3]])
    with torch.inference_mode():
        out = model.encoder(waveform, torch.full((4,), 24000))
        found = beam_search(
            model,
            out.h_BFD,
            out.context_lengths_B,
            [[START, NO_TIMESTAMPS]] * 4,
            constraints=Constraints(end_id=END, suppression=suppression, limits=[30] * 4),
            beam_size=beams,
            length_penalty=1.0,
            n_best=1,
        )
        features = model.encoder.log_mel(waveform, 3000)
        for row, own in enumerate(found):
            generated = reference.generate(
                features[row : row + 1], max_new_tokens=30, num_beams=beams, do_sample=False, length_penalty=1.0
            )
            expected = [t for t in generated[0].tolist() if t not in (START, NO_TIMESTAMPS)]
            expected = expected[: expected.index(END)] if END in expected else expected
            assert own[0].tokens == expected, row


# Joint CTC-attention ---------------------------------------------------------------------------------------


def _ctc(log_probs_FV):
    """Log-probability of every label sequence: the sum over its paths."""
    totals = {}
    frames, size = log_probs_FV.shape
    for path in itertools.product(range(size), repeat=frames):
        score = sum(float(log_probs_FV[t, v]) for t, v in enumerate(path))
        totals.setdefault(tuple(collapse(list(path), 0)), []).append(score)
    return {key: float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) for key, scores in totals.items()}


def test_ctc_prefix_score_is_sum_over_all_texts_with_that_prefix():
    log_probs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4)).log_softmax(-1)
    lengths = torch.tensor([5, 3])
    scorer = CtcPrefixScorer(log_probs, lengths, beams=2, blank=0, weight=1.0, candidates=None)
    prefixes = [(), (), (), ()]
    rows = torch.arange(4)
    for choice in ([1, 2, 2, 1], [1, 1, 2, 2], [2, 1, 2, 2]):
        scores = scorer.scores(torch.zeros(4, 3), 0)
        for row in range(4):
            totals = _ctc(log_probs[row // 2, : lengths[row // 2]])

            def begins(prefix, totals=totals):
                fitting = [score for text, score in totals.items() if text[: len(prefix)] == prefix]
                return math.log(sum(map(math.exp, fitting))) if fitting else -math.inf

            before = begins(prefixes[row])
            for token in (1, 2):
                after = begins((*prefixes[row], token))
                if after > -math.inf:
                    assert float(scores[row, token]) == pytest.approx(after - before, abs=1e-5)
                else:
                    assert float(scores[row, token]) < -500
            assert float(scores[row, 0]) == pytest.approx(totals.get(prefixes[row], -math.inf) - before, abs=1e-5) or (
                prefixes[row] not in totals and float(scores[row, 0]) < -500
            )
        scorer.select(rows, torch.tensor(choice))
        prefixes = [(*prefix, token) for prefix, token in zip(prefixes, choice, strict=True)]


def test_ctc_scores_of_candidates_do_not_change_and_all_other_labels_are_impossible():
    log_probs = torch.randn(1, 6, SIZE, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    whole, few = (
        CtcPrefixScorer(log_probs, torch.tensor([6]), beams=1, blank=0, weight=0.5, candidates=candidates)
        for candidates in (None, 2)
    )
    attention = torch.tensor([[0.0, 0.0, 5.0, 1.0, 4.0]])
    expected, scores = whole.scores(attention, 0), few.scores(attention, 0)
    assert scores[0, [0, 2, 4]].tolist() == pytest.approx(expected[0, [0, 2, 4]].tolist())
    assert (scores[0, [1, 3]] < -1e6).all()


def test_joint_search_with_language_model_finds_same_texts_as_exhaustive_search(decoder, states):
    h, lengths = states
    ctc = torch.randn(3, 7, SIZE, generator=torch.Generator().manual_seed(6)).mul(2).log_softmax(-1)
    ctc[:, 3:] = torch.tensor([0.0, *[-50.0] * (SIZE - 1)])
    model = estimate([["ab", "a"], ["b", "ab"]], order=2).model
    words = Words(LABELS, model=model, weight=0.5, word_score=0.4, unknown_score=-2.0, vocabulary=model.vocabulary)
    limits = [4, 4, 3]
    with torch.inference_mode():
        scorers = [
            CtcPrefixScorer(ctc, lengths, beams=400, blank=0, weight=0.3, candidates=None),
            FusionScorer(Fusion([words, LabelBonus(LABELS, bonus=0.1)], size=SIZE), rows=3 * 400),
        ]
        found = beam_search(
            decoder,
            h,
            lengths,
            [[0]] * 3,
            constraints=Constraints(end_id=0, limits=limits),
            beam_size=400,
            length_penalty=0.0,
            n_best=3,
            decoder_weight=0.7,
            scorers=scorers,
        )
        for row, limit in enumerate(limits):
            # All frames after the first three are blank.
            totals = _ctc(ctc[row, :3])
            scored = []
            for tokens, ended in _every_text(limit):
                if not ended or 1 in tokens or tokens not in totals:
                    continue
                said = "".join(LABELS[token] for token in tokens).split()
                fused = 0.5 * model.sentence_log_prob(said) + 0.4 * len(said) + 0.1 * len(tokens)
                fused += sum(-2.0 for word in said if not model.has_word(word))
                attention = _log_prob(decoder, h[row, : lengths[row]], tokens, ended)
                scored.append((0.7 * attention + 0.3 * totals[tokens] + fused, list(tokens)))
            expected = sorted(scored, reverse=True)[:3]
            assert [one.tokens for one in found[row]] == [tokens for _, tokens in expected]
            assert [one.score for one in found[row]] == pytest.approx([score for score, _ in expected], abs=1e-3)


def _attention(decoder, h_FD, inputs):
    """Attention weights after each input token, ``(U, F)``."""
    lengths = torch.tensor([len(h_FD)])
    if isinstance(decoder, GruDecoder):
        state = decoder.begin(h_FD[None], lengths, len(inputs))
        rows = []
        for token in inputs:
            decoder.step(torch.tensor([[token]]), state)
            rows.append(state.weights_BF[0])
        return torch.stack(rows)
    last = decoder.net.config.decoder_layers - 1
    heads = [(last, head) for head in range(decoder.net.config.decoder_attention_heads)]
    return decoder.cross_weights(torch.tensor([inputs]), h_FD[None], lengths, heads)[0][0].mean(0)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_coverage_counts_each_attended_frame_once(decoder, states, kind):
    h, lengths = states
    if kind == "transformer":
        torch.manual_seed(5)
        head = TransformerAttentionHead(
            blocks=0,
            width=6,
            norm="layer",
            activation="relu",
            dropout=0.0,
            decoder_layers=2,
            heads=2,
            feed_forward=8,
            decoder_dropout=0.0,
            max_tokens=16,
        )
        decoder = head.build(dim=6, vocab_size=SIZE).decoder.eval()
        with torch.no_grad():
            for layer in decoder.net.layers:
                layer.encoder_attn.q_proj.weight.mul_(4)
                layer.encoder_attn.k_proj.weight.mul_(4)
    limits, threshold = [4, 4, 3], 0.4
    with torch.inference_mode():
        coverage = CoverageScorer(decoder, beams=400, weight=0.8, threshold=threshold)
        search = {"beam_size": 400, "length_penalty": 0.0, "n_best": 3, "scorers": [coverage]}
        constraints = Constraints(end_id=0, limits=limits)
        found = beam_search(coverage, h, lengths, [[0]] * 3, constraints=constraints, **search)
        for row, limit in enumerate(limits):
            own = h[row, : lengths[row]]
            scored, bare = [], []
            for tokens, ended in _every_text(limit):
                weights = _attention(decoder, own, [0, *tokens] if ended else [0, *tokens[:-1]])
                covered = int((weights.sum(0) > threshold).sum())
                log_prob = _log_prob(decoder, own, tokens, ended)
                scored.append((log_prob + 0.8 * covered, list(tokens)))
                bare.append((log_prob, list(tokens)))
            expected = sorted(scored, reverse=True)[:3]
            assert [one.tokens for one in found[row]] == [tokens for _, tokens in expected]
            assert [one.score for one in found[row]] == pytest.approx([score for score, _ in expected], abs=1e-3)


def test_candidate_scores_equal_table_scores_and_all_other_tokens_are_impossible():
    labels = ["", "", "a", "b", " a", " "]
    model = estimate([["ab", "a"], ["b", "ab"]], order=2).model
    words = Words(labels, model=model, weight=0.5, word_score=0.4, unknown_score=-2.0, vocabulary=model.vocabulary)
    parts = [words, Hotwords(labels, ["ab a"], bonus=0.7)]
    whole = FusionScorer(Fusion(parts, size=6), rows=4)
    some = FusionScorer(Fusion(parts, size=6), rows=4, candidates=3)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        log_probs = torch.randn(4 if step < 4 else 2, 6, generator=generator).log_softmax(-1)
        expected, scores = whole.scores(log_probs, 0), some.scores(log_probs, 0)
        asked = torch.zeros_like(log_probs, dtype=torch.bool).scatter_(1, log_probs.topk(3, dim=1).indices, True)
        asked[:, 0] = True
        assert torch.allclose(scores[asked], expected[asked], atol=1e-5)
        assert (scores[~asked] == -torch.inf).all()
        rows = torch.randint(0, len(log_probs), (len(log_probs),), generator=generator)
        tokens = log_probs.topk(3, dim=1).indices[rows, step % 3]
        for scorer in (whole, some):
            scorer.select(rows, tokens)
            if step == 3:
                scorer.keep(torch.tensor([1, 3]))
