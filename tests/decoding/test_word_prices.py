"""A vocabulary that is smaller or larger than the language model's, against every label sequence."""

import math

import pytest
import torch

from ssl_asr.decoding.ctc import CtcBeam
from ssl_asr.decoding.ctc_beam import prefix_beam_search
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.ngram import NGram
from tests.decoding.options import CTC_BEAM
from tests.decoding.test_ctc_beam import EVERYTHING, LABELS, _all_scored, _log_probs, _text
from tests.decoding.test_spelling import FUSION
from tests.decoding.test_spelling import LABELS as LETTERS

SENTENCES = [text.split() for text in ("ab a", "b ab", "ab b a", "a", "ba ab")]


@pytest.mark.parametrize("unknown_score", [0.0, -4.0, -math.inf])
@pytest.mark.parametrize(
    "lexicon", [["ab"], ["a", "b"], ["ab", "aab"], ["bb", "abb"], ["a", "ab", "b", "ba"], ["a", "ab", "b", "ba", "bb"]]
)
def test_every_text_has_the_score_of_its_words(lexicon, unknown_score):
    model = estimate(SENTENCES, order=2).model
    options = {"weight": 0.5, "word_score": 0.3, "unknown_score": unknown_score}
    words = Words(
        LABELS, model=model, vocabulary=frozenset(lexicon), unknown_log_prob=model.unknown_log_prob, **options
    )

    def fused(tokens):
        said = _text(tokens).split()
        outside = sum(word not in lexicon for word in said)
        price = outside * unknown_score if outside else 0.0
        return 0.5 * model.sentence_log_prob(said) + 0.3 * len(said) + price

    for seed in range(2):
        log_probs = _log_probs(1, 4, len(LABELS), seed=seed)
        found = prefix_beam_search(
            log_probs,
            torch.tensor([4]),
            beam_size=256,
            fusion=Fusion([words], size=len(LABELS)),
            n_best=256,
            **EVERYTHING,
        )[0]
        expected = {k: v for k, v in _all_scored(log_probs[0], fused).items() if v > -math.inf}
        assert {tuple(f.tokens): pytest.approx(f.score, abs=1e-3) for f in found} == expected
        best = max(expected, key=expected.__getitem__)
        assert (_text(found[0].tokens), found[0].score) == (_text(best), pytest.approx(expected[best], abs=1e-3))


def test_prices_before_a_word_ends():
    model = NGram.from_arpa_lines(ARPA.splitlines())
    words = Words(
        LETTERS,
        model=model,
        weight=0.5,
        word_score=0.0,
        unknown_score=-2.0,
        vocabulary=frozenset(["bunny"]),
        unknown_log_prob=model.unknown_log_prob,
    )
    unknown = -2.0 + 0.5 * model.unknown_log_prob

    def charged(text):
        key = words.begin
        for letter in text:
            key = words.advance(key, LETTERS.index(letter))
        return words._charged(key[1])

    # In the vocabulary; in the language model only; in neither.
    assert [charged(text) for text in ("", "b", "bun", "bunny")] == [0.0] * 4
    assert [charged(text) for text in ("bug", "bugs", "d", "daf")] == [-2.0] * 4
    assert [charged(text) for text in ("x", "bunnyx", "bugsx")] == [unknown] * 3


ARPA = r"""\data\
ngram 1=6
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.8	</s>
-20	<unk>
-1.0	bugs	-0.3
-1.0	bunny	-0.3
-1.0	daffy	-0.3

\2-grams:
-0.4	<s> bugs
-0.4	bugs bunny
-0.4	bunny </s>

\end\
"""


@pytest.mark.parametrize("unknown_score", [0.0, -1.0, -10.0])
@pytest.mark.parametrize("unknown", ["-3", "-20", "-99", None])
def test_a_word_of_the_language_model_outside_the_lexicon_is_found_at_the_default_threshold(
    tmp_path, unknown, unknown_score
):
    text = ARPA.replace("-20\t<unk>", f"{unknown}\t<unk>")
    if unknown is None:
        text = text.replace("None\t<unk>\n", "").replace("ngram 1=6", "ngram 1=5")
    (tmp_path / "lm.arpa").write_text(text)
    (tmp_path / "words.lex").write_text("bunny\n")
    log_probs = torch.full((1, 20, len(LETTERS)), math.log(1e-4))
    for at, letter in enumerate("bugs bunny"):
        log_probs[0, 2 * at, LETTERS.index(letter)] = math.log(0.9)
        log_probs[0, 2 * at + 1, 0] = math.log(0.99)
    log_probs = log_probs.log_softmax(-1)
    options = FUSION | CTC_BEAM | {"lm": str(tmp_path / "lm.arpa"), "lexicon": str(tmp_path / "words.lex")}
    options |= {"unknown_score": unknown_score, "beam_size": 32}
    found = [
        CtcBeam(**(options | {"beam_threshold": threshold})).build(LETTERS)(log_probs, torch.tensor([20]))[0][0]
        for threshold in (15.0, None)
    ]
    assert ["".join(LETTERS[token] for token in each.tokens) for each in found] == ["bugs bunny"] * 2
    expected = 0.5 * -1.2 * math.log(10) + unknown_score
    assert [each.fused for each in found] == pytest.approx([expected] * 2, abs=1e-4)


@pytest.mark.parametrize("unknown_alike", [False, True])
def test_prices_do_not_depend_on_a_lexicon_that_equals_the_vocabulary(unknown_alike):
    model = estimate(SENTENCES, order=2).model
    options = {"model": model, "weight": 0.5, "word_score": 0.1, "unknown_score": -3.0}
    options |= {"unknown_log_prob": model.unknown_log_prob}
    one = Words(LABELS, **options, vocabulary=model.vocabulary, unknown_alike=unknown_alike)
    other = Words(LABELS, **options, vocabulary=frozenset(sorted(model.vocabulary)))
    first, second = one.begin, other.begin
    for label in [2, 3, 3, 4, 2, 2, 4, 3, 2]:
        assert (one.rows([first]) == other.rows([second])).all()
        assert one.end(first) == other.end(second)
        first, second = one.advance(first, label), other.advance(second, label)
