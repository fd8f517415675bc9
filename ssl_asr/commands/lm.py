"""``ssl-asr lm``: an n-gram language model from text, checked by its perplexity."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.decoding.kneser_ney import Estimate
    from ssl_asr.types import Utterance


def lm(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Make the model the resolved config asks for; returns its perplexity on the first text to check."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.sentences import check_sources
    from ssl_asr.decoding.kneser_ney import estimate, perplexity
    from ssl_asr.decoding.language_models import read_language_model
    from ssl_asr.decoding.ngram import NGram

    hush()
    console = make_console() if config["verbose"] else None
    inputs, checks = ([Path(path) for path in config[key]] for key in ("input", "check"))
    check_sources(inputs, "input")
    check_sources(checks, "check")
    split = _splitter(config["unit"], config["model"])
    estimated = estimate(_units(inputs, split, config), order=config["order"], prune=config["prune"])
    output = Path(config["output"])
    estimated.model.write_arpa(output)
    # What is checked is what was written.
    written = read_language_model(output)
    assert isinstance(written, NGram)
    found = {str(path): perplexity(written, _units([path], split, config)) for path in [*checks, *inputs]}
    if console is not None:
        _show(console, estimated, found)
        console.print(f"the model is in {output}")
    return found[str(checks[0])].all_words if checks else None


def _units(paths: list[Path], split: "Callable[[Utterance], list[str]]", config: dict[str, Any]) -> Iterator[list[str]]:
    from ssl_asr.data.sentences import read_sentences

    return (split(sentence) for sentence in read_sentences(paths, normalizer=config["normalizer"]))


def _splitter(unit: str, model: str | None) -> "Callable[[Utterance], list[str]]":
    """How a sentence falls into what the model counts."""
    from ssl_asr.decoding.fusion import spelt

    if unit == "word":
        return lambda sentence: sentence.text.split()
    if unit == "char":
        return lambda sentence: [spelt(character) for character in sentence.text]
    from ssl_asr.build.assembly import load_labels

    assert model is not None
    tokenizer = load_labels(model)
    labels = tokenizer.labels()
    return lambda sentence: [spelt(label) for i in tokenizer.encode(sentence) if (label := labels[i]) is not None]


def _show(console: "Console", estimated: "Estimate", found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="N-grams", title_justify="left")
    for column in ("order", "kept", "discount of 1", "of 2", "of 3 and more"):
        table.add_column(column, justify="right")
    rows = zip(estimated.model.counts(), estimated.discounts, strict=True)
    for order, (count, cuts) in enumerate(rows, start=1):
        fixed = " (fixed)" if order in estimated.fell_back else ""
        table.add_row(f"{order}{fixed}", f"{count:,}", *(f"{cut:.3f}" for cut in cuts))
    console.print(table)
    table = Table(title="Perplexity, ends of sentences included", title_justify="left")
    for column in ("text", "sentences", "words", "unknown", "of known words", "of all"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for name, p in found.items():
        numbers = (f"{p.sentences:,}", f"{p.words:,}", f"{p.unknown:,}", f"{p.known:,.2f}", f"{p.all_words:,.2f}")
        table.add_row(name, *numbers)
    console.print(table)
