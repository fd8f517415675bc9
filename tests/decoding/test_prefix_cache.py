"""Scores from keys and values of earlier texts equal those of whole forward passes, for every kind of causal model."""

from unittest import mock

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ssl_asr.decoding import neural_lm
from ssl_asr.decoding.neural_lm import NeuralLM
from ssl_asr.decoding.prefix_cache import PrefixCache
from tests import toys

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": {**SMALL, "max_position_embeddings": 32},
    "llama": {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 32},
    # The window is shorter than the texts.
    "mistral": {**SMALL, "num_key_value_heads": 1, "sliding_window": 4, "max_position_embeddings": 32},
    "gemma3_text": {
        **SMALL,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 4,
        "max_position_embeddings": 32,
    },
}
WORDS = ["a", "ab", "abba", "b", "bab", "aaaaaaaaa"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(toys.save_language_model(tmp_path_factory.mktemp("lm")))


def network(family, tokenizer, **more):
    torch.manual_seed(0)
    options = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **options, **FAMILIES.get(family, {}), **more)
    made = AutoModelForCausalLM.from_config(config).eval()
    # Larger weights make the scores depend on every earlier token.
    for weight in made.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return made


def language_model(made, tokenizer, *, works=None):
    lm = NeuralLM(made, tokenizer, source="lm")
    if works is not None:
        lm.prefixes.works = works
    return lm


def walk(lm, rounds=5, width=6):
    """Scores as a search asks for them: all words after a few states, of which different ones are continued."""
    states, scores = [lm.begin], []
    for place in range(rounds):
        pairs = [(state, word) for state in states for word in WORDS]
        lm.prefetch(pairs)
        found = [lm.score(*pair) for pair in pairs]
        scores += [score for score, _ in found]
        following = sorted({state for _, state in found})
        # Some beams die, and texts of different lengths live side by side.
        states = following[place % 3 :: max(1, len(following) // width)]
        lm.prefetch_rows(states)
        scores += [float(lm.row(state)[3]) for state in states] + [lm.end(state) for state in states]
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_of_whole_passes_in_float64(family, tokenizer):
    made = network(family, tokenizer).double()
    lm = language_model(made, tokenizer)
    assert lm.prefixes.works
    expected = walk(language_model(made, tokenizer, works=False))
    assert max(expected) - min(expected) > 5
    assert walk(lm) == pytest.approx(expected, abs=1e-9)


def test_scores_equal_those_of_whole_passes_in_float32(tokenizer):
    made = network("gpt2", tokenizer)
    expected = walk(language_model(made, tokenizer, works=False))
    assert walk(language_model(made, tokenizer)) == pytest.approx(expected, abs=1e-4)


def test_models_without_keys_and_values_read_whole_texts(tokenizer):
    made = network("mamba", tokenizer, hidden_size=16, num_hidden_layers=2, state_size=4)
    lm = language_model(made, tokenizer)
    assert not lm.prefixes.works
    assert walk(lm, rounds=2) == pytest.approx(walk(language_model(made, tokenizer, works=False), rounds=2))


def test_a_model_that_reads_padding_is_noticed(tokenizer):
    made = network("gpt2", tokenizer)
    forward = made.forward

    def ignores_mask(input_ids, cache, **_):
        return forward(input_ids=input_ids, cache=cache, use_cache=True)

    assert PrefixCache(made, DynamicCache, max_bytes=2**20).works
    with mock.patch.object(made, "forward", ignores_mask):
        assert not PrefixCache(made, DynamicCache, max_bytes=2**20).works


@pytest.mark.parametrize("max_bytes", [0, 20_000])
def test_memory_is_bounded_and_does_not_change_scores(max_bytes, tokenizer, monkeypatch):
    made = network("gpt2", tokenizer).double()
    expected = walk(language_model(made, tokenizer))
    monkeypatch.setattr(neural_lm, "_KEPT_BYTES", max_bytes)
    lm = language_model(made, tokenizer)
    assert walk(lm) == pytest.approx(expected, abs=1e-9)
    assert lm.prefixes.bytes == sum(kept.nbytes for kept in lm.prefixes._kept.values()) <= max_bytes


def test_rows_read_for_words_are_bounded(tokenizer, monkeypatch):
    made = network("gpt2", tokenizer)
    monkeypatch.setattr(neural_lm, "_KEPT_CELLS", 3 * len(tokenizer))
    lm = language_model(made, tokenizer)
    lm.prefetch([((lm.start_id, token), "a") for token in range(100)])
    assert len(lm._rows) == 3


def test_each_word_reads_its_own_tokens_only(tokenizer):
    made = network("gpt2", tokenizer)

    def tokens_read(lm):
        with mock.patch.object(made, "forward", wraps=made.forward) as forward:
            state = lm.begin
            for _ in range(4):
                _, state = lm.score(state, "ab")
        return [call.kwargs["input_ids"].shape[1] for call in forward.call_args_list]

    pieces = [len(language_model(made, tokenizer).spell("ab", first=first)) for first in (True, False, False, False)]
    # The row after the state reads the word before; the word itself reads all its tokens but the last.
    before = [1, *pieces[:-1]]
    expected = [size for read, piece in zip(before, pieces, strict=True) for size in (read, piece - 1) if size]
    lm = language_model(made, tokenizer)
    assert tokens_read(lm) == expected
    assert tokens_read(language_model(made, tokenizer, works=False)) == [
        sum(before[: at + 1]) + piece - 1 for at, piece in enumerate(pieces)
    ]
