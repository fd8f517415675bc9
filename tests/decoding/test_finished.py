"""When finished rows leave a batch changes no result, and no token waits for the device."""

from contextlib import contextmanager

import pytest
import torch

from ssl_asr.decoding import finished
from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.coverage import CoverageScorer
from ssl_asr.decoding.ctc_prefix import CtcPrefixScorer
from ssl_asr.decoding.finished import FinishedRows
from ssl_asr.decoding.fusion.scorers import FusionScorer
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.step_model import AtLeast, Constraints, Suppression
from ssl_asr.decoding.timestamps import TimestampRules
from ssl_asr.models.attention import GruAttentionHead, TransformerAttentionHead
from tests.decoding.automata import every_kind
from tests.waits import count_waits

SIZE, FRAMES, ROWS = 9, 12, 6
LABELS = ["", "a", " a", "b", "ab", " ", "", "c", " c"]
BLOCKS = {"blocks": 0, "width": 6, "norm": "layer", "activation": "relu", "dropout": 0.0, "decoder_dropout": 0.0}
GRU = {"embedding": 4, "decoder_width": 8, "decoder_layers": 1, "attention_width": 4, "channels": 2, "kernel": 2}
KINDS = {
    "gru": GruAttentionHead(**BLOCKS, **GRU),
    "transformer": TransformerAttentionHead(**BLOCKS, decoder_layers=2, heads=2, feed_forward=8, max_tokens=64),
}
LIMITS = [40, 3, 17, 30, 1, 25]


def _decoder(kind, seed):
    torch.manual_seed(seed)
    decoder = KINDS[kind].build(dim=6, vocab_size=SIZE).decoder.eval()
    # Sharp outputs, so that texts end at different lengths.
    if kind == "gru":
        decoder.out.weight.data.mul_(3)
    else:
        decoder.net.embed_tokens.weight.data[0].mul_(2)
    return decoder


def _states(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, FRAMES + 1, (ROWS,), generator=generator)
    return 2 * torch.randn(ROWS, FRAMES, 6, generator=generator), lengths


def test_flags_are_those_of_the_check_before():
    watch = FinishedRows(torch.device("cpu"), share=1.0, every=3)
    flags = [torch.tensor([step >= 3, False, step >= 5, step >= 8]) for step in range(1, 13)]
    seen = [watch.left(one) for one in flags[:6]]
    # The flags after 3 tokens, at token 6.
    assert seen == [None, None, None, None, None, [1, 2, 3]]
    assert watch.keep([1, 2, 3]).tolist() == [1, 2, 3]
    # The flags after 6 tokens, without the row that has left.
    assert [watch.left(one[1:]) for one in flags[6:9]] == [None, None, [0, 2]]
    assert watch.keep([0, 2]).tolist() == [0, 2]
    assert [watch.left(one[[1, 3]]) for one in flags[9:]] == [None, None, [0]]


def test_each_token_is_checked_on_a_cpu():
    watch = FinishedRows(torch.device("cpu"), share=0.75)
    assert watch.left(torch.tensor([False, True])) == [0]
    # Too few are finished.
    assert watch.left(torch.tensor([False, False])) is None
    assert watch.left(torch.tensor([False] * 4 + [True])) is None
    assert watch.left(torch.tensor([True, True])) == []


@pytest.mark.parametrize("every", [2, 3, 8, 100])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_greedy_texts_do_not_depend_on_the_checks(kind, every):
    seen = set()
    for seed in range(6):
        decoder, (h, lengths) = _decoder(kind, seed), _states(seed)
        constraints = Constraints(end_id=0, limits=LIMITS, suppression=Suppression(always=(2,), first=(3, 0)))
        prompts = [[0]] * ROWS
        expected, found = (
            greedy_decode(decoder, h, lengths, prompts, constraints=constraints, check_every=one) for one in (1, every)
        )
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
        seen |= {(row, len(one.tokens)) for row, one in enumerate(expected)}
    assert len(seen) > ROWS


def _scorers(decoder, h, lengths, beams, kind):
    if kind == "plain":
        return decoder, []
    if kind == "tables":
        fusion = Fusion(list(every_kind(LABELS, 0))[-1], size=SIZE)
        return decoder, [FusionScorer(fusion, rows=ROWS * beams, candidates=5)]
    log_probs = torch.randn(ROWS, FRAMES, SIZE, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    coverage = CoverageScorer(decoder, beams=beams, weight=0.2, threshold=0.4)
    ctc = CtcPrefixScorer(log_probs, lengths, beams=beams, blank=0, weight=0.3, candidates=5)
    return coverage, [coverage, ctc]


@pytest.mark.parametrize("every", [2, 3, 8, 100])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beams", "length_penalty"), [(1, 1.0), (3, 0.0), (4, 1.0)])
@pytest.mark.parametrize("scored", ["plain", "scorers"])
@torch.inference_mode()
def test_beam_search_does_not_depend_on_the_checks(kind, every, beams, length_penalty, scored):
    for seed in range(3):
        decoder, (h, lengths) = _decoder(kind, seed), _states(seed)
        constraints = Constraints(end_id=0, limits=LIMITS, rules=[AtLeast(tokens=2, end_id=0)])
        found = []
        for one in (1, every):
            model, scorers = _scorers(decoder, h, lengths, beams, scored)
            options = {"beam_size": beams, "length_penalty": length_penalty, "n_best": beams, "scorers": scorers}
            found.append(
                beam_search(model, h, lengths, [[0]] * ROWS, constraints=constraints, check_every=one, **options)
            )
        for row, expected in zip(found[1], found[0], strict=True):
            assert [one.tokens for one in row] == [one.tokens for one in expected]
            assert [one.score for one in row] == pytest.approx([one.score for one in expected], rel=1e-4)


@contextmanager
def _counted(monkeypatch):
    """Waits of a search. Flags are read from their copy on the host, so their reads are not counted."""
    with count_waits() as waits:
        original = finished._Copy.read

        def read(copy):
            before = dict(waits)
            rows = original(copy)
            waits.clear()
            waits.update(before)
            return rows

        monkeypatch.setattr(finished._Copy, "read", read)
        yield waits


@pytest.mark.parametrize("search", ["greedy", "beam", "beam with scorers", "beam with tables"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_token_waits_for_the_device(monkeypatch, kind, search):
    """A search over 10 tokens and one over 50 wait as often: for their results.

    Not in inference mode, in which operations that consist of other operations are not taken apart.
    """
    decoder, (h, lengths) = _decoder(kind, 0), _states(0)
    counts = []
    for tokens in (10, 50):
        rules = [
            AtLeast(tokens=tokens, end_id=0),
            TimestampRules(begin=6, no_timestamps=5, end=0, latest_first=2),
        ]
        # One utterance ends early, so that the batch shrinks.
        limits = [*[tokens] * (ROWS - 3), 2, 2, 2]
        constraints = Constraints(
            end_id=0, limits=limits, rules=rules, suppression=Suppression(always=(2,), first=(3,))
        )
        scored = search.rpartition(" ")[2]
        model, scorers = _scorers(decoder, h, lengths, 3, scored if scored in ("scorers", "tables") else "plain")
        with _counted(monkeypatch) as waits:
            if search == "greedy":
                found = greedy_decode(model, h, lengths, [[0]] * ROWS, constraints=constraints, check_every=4)
                assert len(found[0].tokens) == tokens
            else:
                options = {"beam_size": 3, "length_penalty": 0.0, "n_best": 1, "scorers": scorers}
                beam_search(model, h, lengths, [[0]] * ROWS, constraints=constraints, check_every=4, **options)
        counts.append(dict(waits))
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) < 20


def test_the_count_finds_an_index_by_a_mask():
    with count_waits() as waits:
        values = torch.zeros(3)
        values[torch.tensor([True, False, True])] += 1
    assert waits
