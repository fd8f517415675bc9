"""``ssl-asr lm``: estimate an n-gram language model from text, and measure its perplexity."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.tools import LmConfig

if TYPE_CHECKING:
    from ssl_asr.types import Utterance


def lm(config: LmConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Estimate and write the model, and return its perplexity on the first text of ``check``."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.sentences import check_sources
    from ssl_asr.decoding.kneser_ney import estimate, perplexity
    from ssl_asr.decoding.language_models import read_language_model
    from ssl_asr.decoding.lm_tables import print_estimate, print_perplexities
    from ssl_asr.decoding.ngram import NGram

    hush()
    console = make_console() if config.verbose else None
    inputs, checks = ([Path(path) for path in paths] for paths in (config.input, config.check))
    check_sources(inputs, "input")
    check_sources(checks, "check")
    split = _splitter(config)
    estimated = estimate(_units(inputs, split, config.normalizer), order=config.order, prune=config.prune)
    output = Path(config.output)
    estimated.model.write_arpa(output)
    # The perplexity is that of the file.
    written = read_language_model(output)
    assert isinstance(written, NGram)
    found = {str(path): perplexity(written, _units([path], split, config.normalizer)) for path in [*checks, *inputs]}
    if console is not None:
        print_estimate(estimated, console)
        print_perplexities(found, console)
        console.print(f"the model is in {output}")
    return found[str(checks[0])].all_words if checks else None


def _units(paths: list[Path], split: "Callable[[Utterance], list[str]]", normalizer: str) -> Iterator[list[str]]:
    from ssl_asr.data.sentences import read_sentences
    from ssl_asr.decoding.kneser_ney import refuse_marks

    for sentence in read_sentences(paths, normalizer=normalizer):
        units = split(sentence)
        refuse_marks(units, sentence.id)
        yield units


def _splitter(config: LmConfig) -> "Callable[[Utterance], list[str]]":
    """A function that splits a sentence into the units of the model."""
    from ssl_asr.decoding.fusion.automata import lm_token

    if config.unit == "word":
        return lambda sentence: sentence.text.split()
    if config.unit == "char":
        return lambda sentence: [lm_token(character) for character in sentence.text]
    from ssl_asr.inference.model import load_label_tokenizer

    assert config.model is not None
    tokenizer = load_label_tokenizer(config.model, extensions=config.extensions)
    labels = tokenizer.labels()
    return lambda sentence: [lm_token(label) for i in tokenizer.encode(sentence) if (label := labels[i]) is not None]
