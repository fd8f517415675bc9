"""``ssl-asr lm``: estimate an n-gram language model from text, and measure its perplexity."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_asr.config.schemas import LmConfig

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.decoding.kneser_ney import Estimate
    from ssl_asr.types import Utterance


def lm(config: LmConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Estimate and write the model, and return its perplexity on the first text of ``check``."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.sentences import check_sources
    from ssl_asr.decoding.kneser_ney import estimate, perplexity
    from ssl_asr.decoding.language_models import read_language_model
    from ssl_asr.decoding.ngram import NGram

    hush()
    console = make_console() if config.verbose else None
    inputs, checks = ([Path(path) for path in paths] for paths in (config.input, config.check))
    check_sources(inputs, "input")
    check_sources(checks, "check")
    split = _splitter(config.unit, config.model)
    estimated = estimate(_units(inputs, split, config.normalizer), order=config.order, prune=config.prune)
    output = Path(config.output)
    estimated.model.write_arpa(output)
    # The perplexity is that of the file.
    written = read_language_model(output)
    assert isinstance(written, NGram)
    found = {str(path): perplexity(written, _units([path], split, config.normalizer)) for path in [*checks, *inputs]}
    if console is not None:
        _show(console, estimated, found)
        console.print(f"the model is in {output}")
    return found[str(checks[0])].all_words if checks else None


def _units(paths: list[Path], split: "Callable[[Utterance], list[str]]", normalizer: str) -> Iterator[list[str]]:
    from ssl_asr.data.sentences import read_sentences

    return (split(sentence) for sentence in read_sentences(paths, normalizer=normalizer))


def _splitter(unit: str, model: str | None) -> "Callable[[Utterance], list[str]]":
    """A function that splits a sentence into the units of the model."""
    from ssl_asr.decoding.fusion.automata import lm_token

    if unit == "word":
        return lambda sentence: sentence.text.split()
    if unit == "char":
        return lambda sentence: [lm_token(character) for character in sentence.text]
    from ssl_asr.inference.model import load_label_tokenizer

    assert model is not None
    tokenizer = load_label_tokenizer(model)
    labels = tokenizer.labels()
    return lambda sentence: [lm_token(label) for i in tokenizer.encode(sentence) if (label := labels[i]) is not None]


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
