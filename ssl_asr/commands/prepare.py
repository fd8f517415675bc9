"""``ssl-asr prepare``: manifests from corpora, datasets and the formats of other toolkits, and the other way around."""

import sys
from pathlib import Path

from ssl_asr.config.tools import PrepareConfig
from ssl_asr.errors import overwrites
from ssl_asr.textfiles import overwritten


def prepare(config: PrepareConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Prepare. Whatever is left out is named on standard error and in ``skipped.jsonl``."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.formats.manifests import Shards
    from ssl_asr.data.formats.rows import ReadOptions
    from ssl_asr.data.preparation import (
        WRITERS,
        check_skips,
        measure,
        print_splits,
        read_sources,
        write_corpus,
        write_skipped,
    )
    from ssl_asr.data.prepared import check_folder, check_outputs
    from ssl_asr.data.splits import assign_splits
    from ssl_asr.inference.summary import Summary

    hush()
    console = make_console() if config.verbose else None
    output = Path(config.output_dir)
    skipped = output / "skipped.jsonl"
    if overwritten([skipped], map(Path, config.input)):
        raise overwrites(skipped, "output_dir")
    check_folder(output, overwrite=config.overwrite, inputs=map(Path, config.input))
    options = ReadOptions(
        output=output,
        columns={key: name for key, name in (config.columns or {}).items() if name is not None},
        audio_dir=None if config.audio_dir is None else Path(config.audio_dir),
        segments=config.segments,
        subset=config.subset,
        require_text=config.require_text,
        progress=console is not None,
    )
    if config.splits is not None:
        check_outputs(output, WRITERS[config.format][1], list(config.splits))
    corpus = read_sources(config.input, config.kind, options, config.digest)
    if config.splits is None:
        check_outputs(output, WRITERS[config.format][1], list(corpus.splits))
    said = len(_say(corpus.notes))
    measure(corpus, require_text=config.require_text, name_long=config.model is None, progress=options.progress)
    if config.model is not None:
        from ssl_asr.inference.cutting import cut_long

        cut_long(corpus, config.model, longest_s=config.longest_s, extensions=config.extensions, console=console)
    write_skipped(skipped, corpus.skips)
    summary = Summary(corpus.count, len(corpus.rows), corpus.skips, corpus.notes[said:], verb="prepared")
    summary.show(console, skipped, sys.stderr)
    check_skips(corpus, config.max_skip_fraction, skipped)
    said = len(corpus.notes)
    if config.splits is not None:
        corpus.rows = assign_splits(corpus.rows, config.splits, by=config.split_by, seed=config.seed)
    shards = Shards(config.shard_size, config.shard_address)
    written = write_corpus(corpus, config.format, output, inputs=config.input, shards=shards, progress=options.progress)
    _say(corpus.notes[said:])
    print_splits(corpus, console)
    print("\n".join(map(str, written)))
    return None


def _say(notes: list[str]) -> list[str]:
    """Print notes on standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return notes
