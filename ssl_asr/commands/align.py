"""``ssl-asr align``: the time of each word of known texts, by CTC forced alignment."""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.schemas import AlignConfig
from ssl_asr.errors import ConfigError
from ssl_asr.types import Skip

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.data.manifest import Manifest
    from ssl_asr.inference.batches import Transcripts
    from ssl_asr.types import Skip


def align(config: AlignConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Align. Texts that cannot be spelled or do not fit into their audio are named on standard error."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.manifest import read_named
    from ssl_asr.inference.outputs import Outputs, formats_of
    from ssl_asr.inference.summary import Summary

    hush()
    console = make_console() if config.verbose else None
    kinds = formats_of(config.output, config.format)
    manifests = read_named(config.manifest, root=config.root)
    recordings = [utterance for manifest in manifests.values() for utterance in manifest]
    sources = [Path(path) for path in config.manifest.values()]
    outputs = Outputs(config.output, kinds, recordings, sources=sources, overwrite=config.overwrite)
    done, unspelled = _align(config, manifests, console)
    rows = [row for name in config.manifest for row in done.predictions[name]]
    kept = [row for row in rows if row.words or not row.ref.strip()]
    notes = outputs.write(kept, config) if kept else []
    what = "its text does not fit into its audio"
    skips = [*unspelled, *(skip for name in config.manifest for skip in done.skips[name])]
    skips += [Skip(row.id, "", "no_room", what, row.duration) for row in rows if not row.words and row.ref.strip()]
    wild = sum(not word.tokens for row in kept for word in row.words)
    if wild:
        notes.append(f"words without a label, timed by the speech between their neighbors: {wild}")
    Summary(len(recordings), len(kept), skips, notes, key="manifest", verb="aligned").show(console)
    if console is not None:
        words = sum(len(row.words) for row in kept)
        console.print(f"{words:,} words of {len(kept):,} utterances are in {config.output}")
    return None


def _align(
    config: AlignConfig, manifests: "dict[str, Manifest]", console: "Console | None"
) -> "tuple[Transcripts, list[Skip]]":
    """Each utterance's text with word times, and the utterances without any character that the model can spell."""
    from ssl_asr.console import say_to
    from ssl_asr.inference.batches import transcribe_manifests
    from ssl_asr.inference.model import load_model
    from ssl_asr.inference.options import inference_options, run_options
    from ssl_asr.training.ctc import unspelled_text
    from ssl_asr.training.module import TranscribeOptions

    module = load_model(config.model, inference_options(config), say_to(console))
    if not module.aligns:
        raise ConfigError("model", "has no CTC layer, which alignment needs", "give a CTC or joint run")
    options = TranscribeOptions(confidence=module.confidence_measure(config.times, required=True), align=True)
    unspelled: list[Skip] = []
    spelled = {}
    for name, manifest in manifests.items():
        faults = [unspelled_text(utterance, module.tokenizer) for utterance in manifest]
        unspelled += [fault for fault in faults if fault is not None]
        spelled[name] = manifest.select([i for i, fault in enumerate(faults) if fault is None])
    done = transcribe_manifests(module, spelled, run=run_options(config, module), options=options, console=console)
    return done, unspelled
