"""``ssl-asr export``: write a model for another runtime, with a parity check and a model card."""

from pathlib import Path

from ssl_asr.config.exporting import ExportConfig


def export(config: ExportConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Export, and return the largest change of the transcripts that have to agree."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.export.job import export_folder

    hush()
    console = make_console() if config.verbose else None
    parity = export_folder(config, console)
    print(f"The exported model is in {config.output_dir}")
    return max(one.change for one in parity.comparisons if one.required)
