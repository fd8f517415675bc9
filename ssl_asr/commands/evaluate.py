"""``ssl-asr evaluate``: score a run, a checkpoint or a pretrained model on manifests."""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.schemas import EvaluateConfig
from ssl_asr.errors import raise_all

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.inference.batches import Transcripts
    from ssl_asr.inference.summary import Summary


def evaluate(config: EvaluateConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Score, and return the first manifest's WER under the first normalizer."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.filters import write_skips
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.inference.options import report_detail
    from ssl_asr.inference.scored import begin_results, read_scored
    from ssl_asr.metrics.evaluation import report
    from ssl_asr.metrics.provenance import Clock

    hush()
    clock = Clock()
    console = make_console() if config.verbose else None
    skipped = Path(config.output_dir) / "skipped.jsonl"
    done, summary = _transcribe(config, console) if config.predictions is None else (read_scored(config), None)
    begin_results(Path(config.output_dir), overwrite=config.overwrite)
    evaluations = report(
        done.predictions,
        done.skips,
        normalizers=get_normalizers(config.normalizers),
        folder=Path(config.output_dir),
        console=console,
        samples=config.samples,
        clock=clock,
        detail=report_detail(config),
        about=done.about(config.model),
    )
    if summary is not None:
        write_skips(skipped, done.skips)
        summary.show(console, skipped)
    raise_all(done.refused)
    return next(iter(evaluations.values())).wer


def _transcribe(config: EvaluateConfig, console: "Console | None") -> "tuple[Transcripts, Summary]":
    """Transcripts of every manifest, with the key of the manifest that ``reference`` names as their reference."""
    from ssl_asr.console import say_to
    from ssl_asr.data.batching import print_batching
    from ssl_asr.data.tokenizer import warn_of_unseen
    from ssl_asr.inference.batches import transcribe_manifests
    from ssl_asr.inference.model import find_checkpoint, load_model
    from ssl_asr.inference.options import inference_options, long_form, run_options
    from ssl_asr.inference.scored import scored_manifests
    from ssl_asr.inference.summary import Summary
    from ssl_asr.metrics.evaluation import with_reference

    manifests = scored_manifests(config)
    module = load_model(str(config.model), inference_options(config), say_to(console))
    for manifest in manifests.values() if config.reference == "text" else ():
        warn_of_unseen(module.tokenizer, manifest, where=str(manifest.path))
    # A score counts what the model makes of every utterance, silent ones included.
    form = long_form(config, config.max_batch_s, check_short=False)
    done = transcribe_manifests(module, manifests, run=run_options(config, module), long_form=form, console=console)
    summary = Summary.of(manifests, done)
    if summary.done == 0:  # there is nothing to score: raises
        summary.show(console)
    if console is not None and done.batching:
        print_batching(done.batching, console)
    checkpoint = find_checkpoint(str(config.model))
    done.checkpoints = {} if checkpoint is None else dict.fromkeys(manifests, str(checkpoint))
    done.predictions = {name: with_reference(rows, config.reference) for name, rows in done.predictions.items()}
    done.refuse(manifests, config.max_skip_fraction, prefix="", folder=Path(config.output_dir))
    return done, summary
