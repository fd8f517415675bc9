"""Greedy search against a plain loop and transformers, and the decoder options."""

from dataclasses import replace

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from ssl_asr.decoding.fusion.tables import LazyFusion
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.seq2seq import WhisperBeam, WhisperGreedy
from ssl_asr.decoding.step_model import Constraints, Suppression
from ssl_asr.models.whisper import WhisperBackbone
from ssl_asr.types import Utterance
from tests.toys import END, NO_TIMESTAMPS, START

PROMPT = [START, NO_TIMESTAMPS]


@pytest.fixture
def model(toy_checkpoints):
    backbone = WhisperBackbone(
        source="", revision=None, window="30s", tail_s=0.0, train_tail_s=None, recommended_freeze="none"
    )
    model = backbone.load_seq2seq(toy_checkpoints["whisper"]).eval()
    # A random model never ends. This weight lets rows end at different positions.
    with torch.no_grad():
        model.net.embed_tokens.weight[END] *= 2.5
    return model


@pytest.fixture
def states():
    return torch.randn(7, 12, 16) * 3, torch.tensor([12, 3, 7, 12, 1, 9, 12])


def loop(model, h, length, suppression, limit):
    """Greedy search without cache or batch: the whole prefix at each step."""
    tokens, total, steps = list(PROMPT), 0.0, 0
    while len(tokens) - 2 < limit:
        states = model(torch.tensor([tokens]), h[None, :length], torch.tensor([length]))
        logits = model.logits(states)[0, -1].clone()
        logits[list(suppression.always)] = -torch.inf
        if len(tokens) == 2:
            logits[list(suppression.first)] = -torch.inf
        best = logits.log_softmax(-1).max(-1)
        tokens.append(int(best.indices))
        total, steps = total + float(best.values), steps + 1
        if tokens[-1] == END:
            tokens.pop()
            break
    return tokens[2:], total / steps


@pytest.mark.parametrize("suppression", [Suppression(), Suppression(always=(3, 5, START), first=(END, 7))])
def test_batched_greedy_search_equals_plain_loop(model, states, suppression):
    h, lengths = states
    with torch.inference_mode():
        limits = [20, 20, 5, 20, 20, 1, 30]
        constraints = Constraints(end_id=END, suppression=suppression, limits=limits)
        rows = greedy_decode(model, h, lengths, [PROMPT] * 7, constraints=constraints)
        for row, (limit, decoded) in enumerate(zip(limits, rows, strict=True)):
            tokens, score = loop(model, h[row], int(lengths[row]), suppression, limit)
            assert decoded.tokens == tokens
            assert abs(decoded.score - score) < 1e-4
    ends = {len(row.tokens) for row in rows}
    assert len(ends) > 2, "the rows of this test must end at different positions"


def test_tokens_equal_transformers_generate(model, toy_checkpoints):
    reference = WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"]).eval()
    with torch.no_grad():
        reference.model.decoder.embed_tokens.weight[END] *= 2.5
    generation = model.generation
    suppression = Suppression(
        always=tuple(generation["suppress_tokens"]), first=tuple(generation["begin_suppress_tokens"])
    )
    constraints = Constraints(end_id=END, suppression=suppression, limits=[40] * 3)
    waveform = torch.randn(3, 24000) * torch.tensor([[0.1], [1.0], [0.01]])
    with torch.inference_mode():
        out = model.encoder(waveform, torch.full((3,), 24000))
        rows = greedy_decode(model, out.h_BFD, out.context_lengths_B, [PROMPT] * 3, constraints=constraints)
        features = model.encoder.log_mel(waveform, 3000)
        for row, decoded in enumerate(rows):
            generated = reference.generate(features[row : row + 1], max_new_tokens=40, num_beams=1, do_sample=False)
            expected = [t for t in generated[0].tolist() if t not in (START, NO_TIMESTAMPS)]
            expected = expected[: expected.index(END)] if END in expected else expected
            assert decoded.tokens == expected


def test_texts_stay_within_the_limit_of_the_model(model, states):
    h, lengths = states
    with torch.inference_mode():
        constraints = Constraints(end_id=END, suppression=Suppression(always=(END,)))
        rows = greedy_decode(model, h[:2], lengths[:2], [PROMPT] * 2, constraints=constraints)
    assert [len(row.tokens) for row in rows] == [446, 446]


def _options(name):
    return {
        "greedy": WhisperGreedy(suppress=False, max_tokens_per_s=None),
        "beam": WhisperBeam(suppress=False, max_tokens_per_s=None, beam_size=3, length_penalty=0.0, n_best=2),
    }[name]


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_options_search_return_n_best_texts(model, states, name):
    h, lengths = states
    option = _options(name)
    with torch.inference_mode():
        constraints = Constraints(end_id=END, limits=[9] * 7)
        found = option.search(model, h, lengths, [PROMPT] * 7, constraints=constraints)
        plain = greedy_decode(model, h, lengths, [PROMPT] * 7, constraints=constraints)
    assert all(len(texts) == option.n_best for texts in found)
    if name == "greedy":
        assert found == [[decoded] for decoded in plain]
    else:
        assert all(first.score >= second.score for first, second in found)


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_limits_are_the_lower_of_tokens_per_second_and_max_tokens(name):
    option = _options(name)
    utterances = [Utterance("a", "a.wav", 1.0), Utterance("b", "b.wav", 10.0)]
    assert option.limits(utterances) is None
    assert option.with_token_cap(2.5).limits(utterances) == [10, 33]
    assert replace(option, max_tokens=12).limits(utterances) == [12, 12]
    assert replace(option, max_tokens=12).with_token_cap(2.5).limits(utterances) == [10, 12]


def test_text_fails_if_it_repeats_itself_or_is_improbable():
    option = replace(_options("greedy"), max_compression=2.4, min_log_prob=-1.0)
    assert not option.fails("an ordinary sentence", -0.5)
    assert option.fails("an ordinary sentence", -1.5)
    assert option.fails("again " * 40, -0.5)
    assert not _options("beam").fails("again " * 40, -1.5)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({"word_score": 0.5}, ["Words"]),
        ({"word_score": -0.5}, ["Words"]),
        ({"hotwords": ["Ab c"]}, ["Hotwords"]),
        ({"hotwords": ["ab"], "word_score": 1.0}, ["Words", "Hotwords"]),
    ],
)
def test_only_what_has_a_score_is_fused(changes, kinds):
    option = replace(_options("beam"), **changes)
    parts = option.parts(4, lambda tokens: "".join([" ab", "c", " c", "."][token] for token in tokens))
    assert [type(part).__name__ for part in parts] == kinds
    fusion = LazyFusion(parts, size=4, whole_rows=False).on(torch.device("cpu"))
    assert len(option.scorers(fusion, 2)) == (1 if kinds else 0)
