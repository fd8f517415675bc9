"""Subword pieces and symbols: round trips, determinism, unknown labels and invalid options."""

from pydoc import locate

import pytest

from ssl_asr.data.pieces import Pieces, PieceTokenizer
from ssl_asr.data.symbols import Symbols, SymbolTokenizer
from ssl_asr.data.tokenizer import check_coverage, restore_tokenizer
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, UNKNOWN_ID, Utterance

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "Cats and dogs, it's said", "hello  hello"] * 4


def said(text):
    return Utterance(id="u", audio_filepath="u.wav", duration=1.0, text=text, where="m.jsonl:3")


@pytest.fixture(params=["bpe", "unigram"])
def pieces(request):
    options = Pieces(model=request.param, size=24, normalizer="lower")
    return PieceTokenizer.from_texts([said(text) for text in TEXTS], options=options)


def test_decode_returns_normalized_text(pieces):
    for text in TEXTS:
        ids = pieces.encode(said(text))
        assert pieces.decode(ids) == " ".join(text.lower().split())
        assert BLANK_ID not in ids
        assert UNKNOWN_ID not in ids
        assert max(ids) < pieces.vocab_size == 25
        assert pieces.decode([0, *ids, 0]) == pieces.decode(ids)


def test_pieces_are_fewer_than_characters_and_training_is_deterministic(pieces):
    assert len(pieces.encode(said(TEXTS[0]))) < len(TEXTS[0])
    twice = pieces.encode(said("the the"))
    assert len(set(twice)) < len(twice), "a repeated word repeats its pieces"
    twin = restore_tokenizer(pieces.state(), locate)
    assert twin.state() == pieces.state()
    assert twin.encode(said("the cat")) == pieces.encode(said("the cat"))
    again = PieceTokenizer.from_texts(
        [said(text) for text in TEXTS],
        options=Pieces(model="bpe", size=24, normalizer="lower"),
    )
    once_more = PieceTokenizer.from_texts(
        [said(text) for text in TEXTS],
        options=Pieces(model="bpe", size=24, normalizer="lower"),
    )
    assert again.state() == once_more.state(), "each rank trains a tokenizer, and all must be equal"


SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<blank>", "|", "⁇", "[UNK]", "<|endoftext|>"]


def test_spelled_special_pieces_are_text():
    for model, size in (("bpe", 40), ("unigram", 27)):
        options = Pieces(model=model, size=size, normalizer="none")
        tokenizer = PieceTokenizer.from_texts([said(f"a {text} b") for text in SPECIAL * 3], options=options)
        for text in SPECIAL:
            ids = tokenizer.encode(said(f"a {text}"))
            assert BLANK_ID not in ids
            assert UNKNOWN_ID not in ids
            assert tokenizer.decode(ids) == f"a {text}"
            assert tokenizer.unseen(said(text)) == []


def test_the_space_of_sentencepiece_in_a_text_is_unknown(pieces):
    assert pieces.decode(pieces.encode(said("the▁cat"))) == "the ⁇ cat"
    assert pieces.unseen(said("the▁cat")) == ["▁"]
    with pytest.raises(ManifestError, match=r"'▁' U\+2581 x1 \(first in u at m.jsonl:3\)"):
        check_coverage(pieces, [said("the▁cat")], where="train")


def test_unseen_character_gets_unknown_id(pieces):
    ids = pieces.encode(said("cat ж"))
    assert UNKNOWN_ID in ids
    assert BLANK_ID not in ids
    assert "⁇" in pieces.decode(ids)


def test_impossible_sizes_are_refused():
    for size in (5, 5000):
        with pytest.raises(ConfigError, match=f"tokenizer.size: SentencePiece cannot make {size} pieces"):
            PieceTokenizer.from_texts(
                [said(text) for text in TEXTS], options=Pieces(model="bpe", size=size, normalizer="lower")
            )
    with pytest.raises(ConfigError, match=r"of the train split: Vocabulary size too high \(5000\)\. Please set"):
        PieceTokenizer.from_texts(
            [said(text) for text in TEXTS], options=Pieces(model="bpe", size=5000, normalizer="lower")
        )
    with pytest.raises(ManifestError, match="no text"):
        PieceTokenizer.from_texts([said("")], options=Pieces(model="bpe", size=24, normalizer="lower"))


def test_symbols_round_trip_and_are_case_sensitive():
    tokenizer = SymbolTokenizer.from_texts([said("K AE1 t"), said("D AO1 g")], normalizer="none")
    assert tokenizer.symbols == ["AE1", "AO1", "D", "K", "g", "t"]
    ids = tokenizer.encode(said("D AE1 t T"))
    assert ids == [4, 2, 7, UNKNOWN_ID]
    assert tokenizer.decode([0, *ids]) == "D AE1 t ⁇"
    assert restore_tokenizer(tokenizer.state(), locate).encode(said("K g")) == tokenizer.encode(said("K g"))
    missing = r"1 symbols are not in the vocabulary: 'T' U\+0054 x2 \(first in u at m.jsonl:3\)"
    with pytest.raises(ManifestError, match=missing):
        check_coverage(tokenizer, [said("T D T")], where="train")


def test_symbols_option_takes_the_inventory_of_the_train_split_by_default():
    train = [said("K T")]
    assert Symbols(symbols=None, normalizer="none").build(train=train, checkpoint=None).symbols == ["K", "T"]
    assert Symbols(symbols=["AA"], normalizer="none").build(train=train, checkpoint=None).symbols == ["AA"]


@pytest.mark.parametrize("symbols", [[], ["a", "a"], ["a b"], [""]])
def test_invalid_inventory_is_refused(symbols):
    with pytest.raises(ConfigError, match="List each symbol once"):
        SymbolTokenizer(symbols=symbols, normalizer="none")
