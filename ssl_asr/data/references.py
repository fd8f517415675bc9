"""Checks of the reference texts of dev and test sets, before a model is run."""

from collections.abc import Iterable, Mapping

from ssl_asr.errors import ManifestError
from ssl_asr.types import Normalizer


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
