"""References: those of dev and test sets are checked before a model is run, those of training are drawn.

A line of a manifest may have several: ``text``, and further ones in ``references``. Scores count the reference that is
closest to the hypothesis. Training draws one for each utterance and epoch.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ssl_asr.data.line_index import id_hash
from ssl_asr.errors import ManifestError
from ssl_asr.types import Normalizer, Utterance


def all_references(utterances: Iterable[Utterance]) -> Iterator[tuple[str, str | None]]:
    """The text of each reference, with its language code."""
    return ((text, one.lang) for one in utterances for text in one.texts)


def drawn_reference(utterance: Utterance, *, seed: int, epoch: int) -> Utterance:
    """The utterance with one of its references as its only text. Each has the same probability.

    Equal seeds, epochs and ids give equal draws, whatever the number of ranks and of worker processes.
    """
    if not utterance.references:
        return utterance
    rng = np.random.default_rng([seed, epoch, id_hash(utterance.id), 5])
    return replace(utterance, text=utterance.texts[rng.integers(len(utterance.texts))], references=())


def check_references(
    references: Iterable[tuple[str, str | None]], normalizers: Mapping[str, Normalizer], *, where: str
) -> None:
    """Check that an error rate can be computed: under each normalizer, at least one reference has text.

    Reads on only until each normalizer has such a reference.

    Args:
        references: Texts with their language codes.
        normalizers: Text normalizers by name.
        where: Manifest or file that the references are from.

    Raises:
        ManifestError: All references are empty, or become empty under a normalizer.

    Example:
        >>> check_references([("", None)], {"none": lambda text, lang: text}, where="dev.jsonl")
        Traceback (most recent call last):
        ssl_asr.errors.ManifestError: dev.jsonl: all references are empty, so there is no error rate. Add the texts, ...
    """
    without = dict(normalizers)
    has_text = False
    for text, lang in references:
        if not text.strip():
            continue
        has_text = True
        without = {name: normalize for name, normalize in without.items() if not normalize(text, lang).strip()}
        if not without:
            return
    if not has_text:
        what = "all references are empty, so there is no error rate"
        raise ManifestError(where, what, "add the texts, or leave the manifest out")
    what = f"all references are empty after the normalizer {next(iter(without))}, so there is no error rate"
    raise ManifestError(where, what, "correct the texts, or choose other normalizers")
