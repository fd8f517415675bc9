"""The numbers in tables of n-gram models, each against a value worked out by hand."""

from ssl_asr.decoding.kneser_ney import Estimate, Perplexity, estimate
from ssl_asr.decoding.lm_tables import print_estimate, print_perplexities
from tests.tables import cells, heads, wide_console


def test_table_of_an_estimate_has_a_row_for_each_order():
    # Five unigrams: <unk>, <s>, </s>, a, b. Four bigrams: <s> a, a b, a </s>, b </s>.
    found = estimate([["a", "b"], ["a"]], order=2)
    console = wide_console()
    print_estimate(Estimate(found.model, [(0.5, 1.0, 1.5), (0.12345, 1.2, 0.0)], [1]), console)
    assert heads(console) == [["order", "kept", "discount of 1", "of 2", "of 3 and more"]]
    assert cells(console) == [
        ["1 (fixed)", "5", "0.500", "1.000", "1.500"],
        ["2", "4", "0.123", "1.200", "0.000"],
    ]


def test_perplexities_are_printed_with_two_decimals():
    console = wide_console()
    print_perplexities({"dev.txt": Perplexity(1234, 56_789, 1001, 1234.567, 98.765)}, console)
    assert heads(console) == [["text", "sentences", "words", "unknown", "of known words", "of all"]]
    assert cells(console) == [["dev.txt", "1,234", "56,789", "1,001", "1,234.57", "98.77"]]
