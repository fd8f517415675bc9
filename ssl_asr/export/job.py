"""One export: files, parity, model card; nothing half-written.

OUTPUT_DIR's name   .NAME.partial   while it is written and compared
                    NAME            the transcripts agree
                    NAME.differs    they do not
"""

from pathlib import Path

from rich.console import Console

from ssl_asr.config.exporting import SIDECAR, ExportConfig
from ssl_asr.console import notify, say_to, shortened
from ssl_asr.data.manifest import read_named
from ssl_asr.data.text import get_normalizers
from ssl_asr.errors import CheckpointError
from ssl_asr.export.base import ExportModel, Format
from ssl_asr.export.card import Card, write_card
from ssl_asr.export.formats import checked_quantization, load_format
from ssl_asr.export.hub import HubTarget
from ssl_asr.export.model import load_export_model
from ssl_asr.export.parity import Comparison, Parity, check_parity
from ssl_asr.export.sidecar import sidecar
from ssl_asr.export.staging import make_readable, staged, take_place
from ssl_asr.export.tables import show_parity
from ssl_asr.export.tokenizers import write_json
from ssl_asr.export.utterances import read_examples
from ssl_asr.export.word_times import TimeComparison
from ssl_asr.inference.options import inference_options
from ssl_asr.metrics.provenance import Clock

# Largest change of the transcripts by default, without and with quantized weights.
_MAX_CHANGE, _MAX_CHANGE_QUANTIZED = 0.01, 0.05


def export_folder(config: ExportConfig, console: Console | None) -> Parity:
    """Export a model to ``config.output_dir``.

    Raises:
        ConfigError: An option does not go with the format or the model.
        CheckpointError: The format cannot hold the model, or the transcripts differ.
    """
    clock = Clock()
    form = load_format(config.to)
    quantization = checked_quantization(form, config.quantization)
    hub = None if config.push is None else HubTarget(config.push, private=config.private, overwrite=config.overwrite)
    # Manifests are read before the model, since an error in them is found sooner.
    manifests = read_named(config.manifest, root=config.root)
    model = load_export_model(config.model, inference_options(config), say_to(console))
    refusal = form.refusal(model)
    if refusal is not None:
        raise refusal
    examples, skips = read_examples(model.module, manifests, most=config.max_utterances, root=config.root)
    if skips:
        left_out = shortened([skip.id for skip in skips], shown=5)
        notify(f"{len(skips)} utterances are not compared: {left_out}. {skips[0].id}: {skips[0].detail}")
    # A link stays a link: the folder that it points to is replaced.
    folder = Path(config.output_dir).resolve()
    with staged(folder) as partial:
        form.write(model, partial, quantization=quantization)
        make_readable(partial)
        parity = check_parity(
            model,
            form.runtime(partial, model),
            examples,
            real_length=form.real_length,
            max_change=_max_change(config, form, quantization),
            normalizers=get_normalizers(config.normalizers),
            console=console,
        )
        saved = sidecar(config, form, model, partial, quantization, parity, clock)
        write_json(partial / SIDECAR, saved)
        write_card(partial, Card.of(config, model, saved))
        if console is not None:
            show_parity(parity, form.name, partial, console)
        if form.real_length and model.window is not None and not parity.real_lengths_hold():
            notify("With real lengths, the exported model writes other texts. Use 30 s, as the model card does.")
        failed = parity.failed()
        if failed is not None:
            kept = _keep_aside(partial, folder)
            raise _differs(failed, kept, model, form, quantization, parity.max_change)
        if parity.times is not None and not parity.times.agrees():
            raise _times_differ(parity.times, _keep_aside(partial, folder), form)
    if hub is not None:
        address = hub.upload(folder)
        say_to(console)(f"Uploaded to {address}")
    return parity


def _max_change(config: ExportConfig, form: Format, quantization: str) -> float:
    if config.max_change is not None:
        return config.max_change
    return _MAX_CHANGE if quantization == form.quantizations[0] else _MAX_CHANGE_QUANTIZED


def _differs(
    failed: Comparison, kept: Path, model: ExportModel, form: Format, quantization: str, max_change: float
) -> CheckpointError:
    """The error for transcripts that do not agree."""
    window = "" if model.window is None else f" with window={failed.window}"
    what = (
        f"the text of {len(failed.differences)} of {failed.utterances} utterances differs{window}: a WER of "
        f"{100 * failed.change:.2f} % between ssl_asr and {form.name}, and {100 * max_change:g} % are allowed. "
        f"The files are kept in {kept}, and {kept / SIDECAR} lists every difference"
    )
    default = form.quantizations[0]
    other = "" if quantization == default else f"use quantization={default}, or "
    return CheckpointError(f"to={form.name}", what, f"{other}allow it with max_change=…")


def _times_differ(times: TimeComparison, kept: Path, form: Format) -> CheckpointError:
    """The error for word times that do not agree."""
    what = (
        f"words start at other times: {times.within} of {len(times.distances)} within {times.limit_s:g} s of each "
        f"other, and half of them {times.median_s:.2f} s or more apart. The files are kept in {kept}"
    )
    return CheckpointError(f"to={form.name}", what, "compare longer utterances with speech: manifest=…")


def _keep_aside(partial: Path, folder: Path) -> Path:
    kept = folder.with_name(f"{folder.name}.differs")
    take_place(partial, kept)
    return kept
