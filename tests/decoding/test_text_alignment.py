"""Alignment of texts as they are written."""

import itertools

import pytest
import torch

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.pieces import Pieces, PieceTokenizer
from ssl_asr.data.symbols import SymbolTokenizer
from ssl_asr.decoding.text_alignment import spell, written_words
from ssl_asr.training.ctc import WordTimer, encoder_of, unspelled_text, utterance_words
from ssl_asr.types import Utterance, text_of

LETTERS = CharTokenizer(characters=" abck", normalizer="lower")


def spoken(labels, tokenizer, frames_of=1):
    """Log-probabilities of a model that is sure: ``_`` is the blank, every other character its label."""
    ids = {text: i for i, text in enumerate(tokenizer.labels()) if text}
    path = [0 if one == "_" else ids[one] for one in labels for _ in range(frames_of)]
    log_probs = torch.full((len(path), tokenizer.vocab_size), 0.01)
    log_probs[torch.arange(len(path)), path] = 0.9
    return log_probs.log().log_softmax(-1)


def aligned(text, heard, tokenizer=LETTERS, lang=None, measure="max_prob"):
    utterance = Utterance("u", "", 100.0, text=text, lang=lang)
    timer = WordTimer(tokenizer.labels(), 1.0, measure)
    return timer.align(utterance, tokenizer, spoken(heard, tokenizer))


def times(words):
    return [(word.text, word.start, word.end) for word in words]


@pytest.mark.parametrize("measure", ["max_prob", "entropy"])
def test_a_number_has_the_speech_between_its_neighbors_and_punctuation_stays(measure):
    # "123" is spoken as "kab ba", which the wildcard takes with the space inside.
    found = aligned("Ab, cab 123 back!", "_ab_ cab__ __kab ba__ b_ack__", measure=measure)
    assert [word.text for word in found.words] == ["Ab,", "cab", "123", "back!"]
    assert found.text == text_of(found.words) == "Ab, cab 123 back!"
    by_text = {text: (start, end) for text, start, end in times(found.words)}
    assert by_text["Ab,"] == (1, 3)
    assert by_text["cab"] == (5, 8)
    start, end = by_text["123"]
    assert 10 <= start <= 13
    assert 19 <= end <= 22
    assert by_text["back!"] == (22, 27)
    number = found.words[2]
    assert number.tokens == ()
    assert number.confidence == 0.0
    assert all(word.confidence > 0.05 for word in found.words if word.tokens)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found.words))


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("ab – cab", "ab cab"),
        ("ab & cab", "ab_ bbk_ cab"),
        ("123 ab", "_kak_ ab"),
        ("ab 123", "ab _kak_"),
        ("ab 1 2 cab", "ab kk cc cab"),
        ("ab 12ab c", "ab kkab c"),
        ("«ab» (cab)...", "ab cab"),
        ("ab\u00a0cab  back\tab", "ab cab back ab"),
        ("ab's cab", "abk cab"),
        ("äb cab", "_kb cab"),
        ("AB CAB", "ab cab"),
        ("🎵 ab 🎵", "_ab_"),
        ("ab-cab", "ab_cab"),
        ("$5 ab", "kkk ab"),
        ("ab ?!? cab", "ab cab"),
        ("1 2 3 ab", "_kakakak ab"),
    ],
)
def test_as_many_words_come_out_as_go_in(text, heard):
    found = aligned(text, heard)
    assert [word.text for word in found.words] == text.split()
    assert found.text == " ".join(text.split())
    assert "⁇" not in found.text
    for one, other in itertools.pairwise(found.words):
        assert one.start < one.end <= other.start


def test_a_text_that_the_labels_spell_has_the_times_of_plain_alignment():
    from ssl_asr.decoding.alignment import align, words_of

    log_probs = torch.randn(40, LETTERS.vocab_size, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    utterance = Utterance("u", "", 100.0, text="ab cab back")
    found = WordTimer(LETTERS.labels(), 0.02, "max_prob").align(utterance, LETTERS, log_probs)
    plain = words_of(align(log_probs, LETTERS.encode(utterance), blank=0, measure="max_prob"), LETTERS.labels(), 0.02)
    assert times(found.words) == times(plain)
    assert [word.confidence for word in found.words] == [word.confidence for word in plain]
    assert [word.tokens for word in found.words] == [word.tokens for word in plain]


def test_symbols_without_a_label_are_wildcards():
    tokenizer = SymbolTokenizer(symbols=["AA", "K", "T"], normalizer="none")
    utterance = Utterance("u", "", 100.0, text="K AA ZH T")
    path = [2 + ["AA", "K", "T"].index(one) for one in ("K", "AA", "K", "T")]
    log_probs = torch.full((4, tokenizer.vocab_size), 0.01)
    log_probs[torch.arange(4), path] = 0.9
    found = WordTimer(tokenizer.labels(), 1.0, "max_prob").align(utterance, tokenizer, log_probs.log().log_softmax(-1))
    assert times(found.words) == [("K", 0, 1), ("AA", 1, 2), ("ZH", 2, 3), ("T", 3, 4)]


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_pieces_write_the_words_as_they_are(model):
    texts = ["ab cab back", "cab ab", "back cab ab ab", "cack back"]
    train = [Utterance(str(i), "", 1.0, text=text) for i, text in enumerate(texts)]
    tokenizer = PieceTokenizer.from_texts(train, options=Pieces(model=model, size=9, normalizer="lower"))
    utterance = Utterance("u", "", 100.0, text="Ab, cab 123 back!")
    log_probs = torch.randn(60, tokenizer.vocab_size, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    found = WordTimer(tokenizer.labels(), 0.02, "max_prob").align(utterance, tokenizer, log_probs)
    assert [word.text for word in found.words] == ["Ab,", "cab", "123", "back!"]
    assert [bool(word.tokens) for word in found.words] == [True, True, False, True]
    plain = "".join(token.text for token in found.words[3].tokens)
    assert plain == "back"


def test_words_of_scripts_without_spaces_are_characters():
    tokenizer = CharTokenizer(characters="今天气好", normalizer="none")
    for lang in ("zh", "cmn_hans_cn", None):
        found = aligned("今天天气3很好。", "_今_天_天_气_好_好_好_", tokenizer, lang)
        assert [word.text for word in found.words] == ["今", "天", "天", "气", "3", "很", "好。"]
        assert found.text == text_of(found.words) == "今天天气3很好。"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我有3個iPad。", ["我", "有", "3", "個", "iPad。"]),
        ("「はい」と 言った", ["「は", "い」", "と", "言", "っ", "た"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("GPT-4 很好", ["GPT-4", "很", "好"]),
        ("コーヒー", ["コ", "ー", "ヒ", "ー"]),
        ("ab cab", ["ab", "cab"]),
    ],
)
def test_clusters_keep_marks_punctuation_and_foreign_words(text, words):
    found = written_words(text, spaced=False)
    assert [word.text for word in found] == words
    assert "".join((" " if word.spaced else "") + word.text for word in found).strip() == text
    assert [word.text for word in written_words(text, spaced=True)] == text.split()


def test_each_word_is_normalized_alone():
    """A normalizer may join words ("twenty one" is "21"), split them, or leave nothing of one."""
    tokenizer = CharTokenizer(characters=" 0123456789abcdefghijklmnopqrstuvwxyz'", normalizer="whisper_english")
    text = "Um, twenty one cats won't go"
    utterance = Utterance("u", "", 100.0, text=text)
    log_probs = torch.randn(90, tokenizer.vocab_size, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    found = WordTimer(tokenizer.labels(), 0.02, "max_prob").align(utterance, tokenizer, log_probs)
    assert [word.text for word in found.words] == text.split()
    assert "".join(token.text for token in found.words[4].tokens) == "willnot"
    assert found.words[0].tokens == ()


def test_only_what_has_no_label_at_all_is_refused_with_its_characters():
    fault = unspelled_text(Utterance("u7", "", 1.0, text="12 3!"), LETTERS)
    assert fault is not None
    assert (fault.id, fault.reason) == ("u7", "no_labels")
    assert fault.detail.endswith("!123")
    assert unspelled_text(Utterance("u", "", 100.0, text="12 3 a"), LETTERS) is None
    assert unspelled_text(Utterance("u", "", 100.0, text=""), LETTERS) is None
    assert aligned("123", "_ab_").words == []


def test_a_text_that_does_not_fit_has_no_words():
    found = aligned("back back back", "ab")
    assert found.words == []
    assert found.score == -torch.inf


def test_a_wildcard_leaves_silence_to_the_blank():
    found = aligned("ab 12 cab", "ab__________ kk____________ cab")
    word = found.words[1]
    assert (word.start, word.end) == pytest.approx((13, 15), abs=1.5)


def test_spelling():
    encode = encoder_of(Utterance("u", "", 1.0), LETTERS)
    a, b = LETTERS.encode(Utterance("u", "", 100.0, text="ab"))
    assert spell("a1!b", encode).labels == (a, None, b)
    assert spell("a!b", encode).labels == (a, b)
    assert spell("?", encode).labels == (None,)
    assert spell("123", encode).is_wild


def test_words_are_counted_by_the_language_of_the_utterance():
    assert len(utterance_words(Utterance("u", "", 100.0, text="今天", lang="en"))) == 1
    assert len(utterance_words(Utterance("u", "", 100.0, text="今天", lang="ja"))) == 2
