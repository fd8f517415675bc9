"""Tables that describe an n-gram language model."""

from collections.abc import Mapping

from rich.console import Console

from ssl_asr.console import TitledTable
from ssl_asr.decoding.kneser_ney import Estimate, Perplexity


def print_estimate(estimated: Estimate, console: Console) -> None:
    """Print the number of n-grams and the discounts of each order."""
    table = TitledTable("N-grams")
    for column in ("order", "kept", "discount of 1", "of 2", "of 3 and more"):
        table.add_column(column, justify="right")
    rows = zip(estimated.model.counts(), estimated.discounts, strict=True)
    for order, (count, cuts) in enumerate(rows, start=1):
        fixed = " (fixed)" if order in estimated.fell_back else ""
        table.add_row(f"{order}{fixed}", f"{count:,}", *(f"{cut:.3f}" for cut in cuts))
    console.print(table)


def print_perplexities(found: Mapping[str, Perplexity], console: Console) -> None:
    """Print the perplexity of each text by its path."""
    table = TitledTable("Perplexity, ends of sentences included")
    for column in ("text", "sentences", "words", "unknown", "of known words", "of all"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for name, p in found.items():
        numbers = (f"{p.sentences:,}", f"{p.words:,}", f"{p.unknown:,}", f"{p.known:,.2f}", f"{p.all_words:,.2f}")
        table.add_row(name, *numbers)
    console.print(table)
