"""Write the encoder states of a manifest to disk."""

from rich.console import Console

from ssl_asr.console import TitledTable
from ssl_asr.data.filters import Limits
from ssl_asr.data.manifest import Manifest
from ssl_asr.inference.batches import inference_data
from ssl_asr.inference.running import RunOptions
from ssl_asr.training.extraction import Extraction
from ssl_asr.training.state_cache import StateCache
from ssl_asr.training.trainer import make_inference_trainer
from ssl_asr.types import SAMPLE_RATE, Skip


def extract_states(cache: StateCache, manifest: Manifest, *, run: RunOptions, console: Console | None) -> list[Skip]:
    """Write the states of every utterance that the cache's store does not have yet.

    Findings in the audio are printed on standard error.

    Returns:
        Utterances that could not be encoded.

    Raises:
        CheckpointError: The audio of an utterance differs from when its states were made.
    """
    encoder = cache.encoder
    limits = Limits(encoder.min_samples / SAMPLE_RATE, encoder.max_s, "Whisper's window")
    data = inference_data({"input": manifest}, tokenizer=None, limits=limits, encoder=encoder, run=run, console=console)
    selection = data.selections["input"]
    cache.store.check(selection.kept)
    missing = [index for index, utterance in enumerate(selection.kept) if utterance.id not in cache.store]
    if console is not None and len(missing) < len(selection.kept):
        console.print(f"{len(selection.kept) - len(missing)} utterances have states already")
    extraction = Extraction(cache)
    if missing:
        selection.kept = selection.kept.select(missing)
        trainer = make_inference_trainer(accelerator=run.accelerator, console=console, verb="Encoding")
        trainer.test(extraction, datamodule=data, verbose=False)
        data.print_notices()
    if console is not None:
        _print_totals(cache, console)
    return [*selection.skips, *extraction.skipped]


def _print_totals(cache: StateCache, console: Console) -> None:
    table = TitledTable(f"States of layers {', '.join(map(str, cache.layers))}")
    for column in ("utterances", "frames of speech", "GB on disk"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{number:,}" for number in cache.store.totals()), f"{cache.store.gigabytes():.3f}")
    console.print(table)
    console.print(f"states are in {cache.store.folder}")
