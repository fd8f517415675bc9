"""Rescoring of n-best lists, by scores worked out by hand."""

import pytest

from ssl_asr.decoding.rescoring import Rescorer, Rescoring, n_best_conflicts


class _Lengths:
    """A language model that gives each text minus the number of its characters, and minus 10 to upper case."""

    def text_log_probs(self, texts):
        return [-float(len(text)) - 10 * (text != text.lower()) for text in texts]


def test_defaults_are_those_of_the_configs():
    options = Rescoring()
    assert (options.rescore_lm, options.rescore_best, options.rescore_lower) == (None, 16, False)
    assert (options.rescore_weight, options.rescore_word_score) == (0.5, 0.0)
    assert options.rescorer() is None


@pytest.mark.parametrize(("lm", "n_best", "searched"), [(None, 3, 3), ("lm", 3, 8), ("lm", 9, 9)])
def test_a_search_returns_what_is_rescored_or_given(lm, n_best, searched):
    assert Rescoring(rescore_lm=lm, rescore_best=8).searched(n_best) == searched


def test_texts_are_ranked_by_both_scores_and_the_number_of_words():
    rescorer = Rescorer(Rescoring(rescore_weight=0.5, rescore_word_score=3.0), _Lengths())
    assert rescorer.log_probs(["ab", "a b c"]) == [-2.0, -5.0]
    assert rescorer.scores(["ab", "a b c"]) == [0.5 * -2 + 3 * 1, 0.5 * -5 + 3 * 3]
    # -1 + 2 / 4 and -2 + 6.5 / 4.
    assert rescorer.ranked(["ab", "a b c"], [-1.0, -2.0], divisors=[4, 4]) == [(1, -0.375), (0, -0.5)]
    assert rescorer.ranked(["ab", "a b c"], [-1.0, -2.0], divisors=[8, 20]) == [(0, -0.75), (1, -1.675)]


def test_the_language_model_reads_lower_case_if_asked():
    assert Rescorer(Rescoring(rescore_lower=True), _Lengths()).log_probs(["AB"]) == [-2.0]
    assert Rescorer(Rescoring(), _Lengths()).log_probs(["AB"]) == [-12.0]


def test_an_n_best_list_is_at_most_the_beam():
    assert not list(n_best_conflicts(4, 4))
    [error] = n_best_conflicts(4, 5)
    assert "decoder.n_best: is 5, and the beam has 4 hypotheses" in str(error)
