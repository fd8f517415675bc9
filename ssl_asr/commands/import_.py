"""``ssl-asr import``: convert a checkpoint of fairseq or SpeechBrain to transformers' layout."""

from pathlib import Path

from ssl_asr.config.exporting import ImportConfig


def import_(config: ImportConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Convert."""
    from ssl_asr.console import hush
    from ssl_asr.export.staging import make_readable, staged
    from ssl_asr.models.foreign import convert_foreign

    hush()
    with staged(Path(config.output_dir).resolve()) as partial:
        missing = convert_foreign(Path(config.source), partial, normalize=config.normalize)
        make_readable(partial)
    lacks = f", without {', '.join(missing)}, which starts from random values" if missing else ""
    print(f"The encoder is in {config.output_dir}{lacks}. Train it with backbone.source={config.output_dir}")
    return None
