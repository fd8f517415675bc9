"""``ssl-asr check``: what is wrong with the audio and the texts of manifests, and what their splits share."""

import sys
from pathlib import Path

from ssl_asr.config.tools import CheckConfig
from ssl_asr.errors import ManifestError, UserError, collecting, naming, overwrites, raise_all

EXIT_FINDINGS = 1


def check(config: CheckConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Check, write the report, and exit with code 1 if there are errors."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.doctor.page import page
    from ssl_asr.data.doctor.report import clean_path, examine, write_clean
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.data.text import get_normalizer
    from ssl_asr.inference.text_check import add_mismatches, model_limits
    from ssl_asr.textfiles import overwritten, to_json, written_whole

    hush()
    console = make_console() if config.verbose else None
    output = Path(config.output_dir)
    taken = overwritten([clean_path(output, name) for name in config.manifest], map(Path, config.manifest.values()))
    if taken is not None:
        raise overwrites(taken, "output_dir")
    invalid: dict[str, list[ManifestError]] = {name: [] for name in config.manifest}
    manifests, errors = {}, list[UserError]()
    for name, path in config.manifest.items():
        with collecting(errors), naming("manifest", path):
            manifests[name] = read_manifest(
                path, require_text=False, unique_ids=False, measure=False, invalid=invalid[name]
            )
    raise_all(errors)
    report = examine(
        manifests,
        invalid=invalid,
        normalize=get_normalizer(config.normalizer),
        model=None if config.model is None else model_limits(config.model, manifests, extensions=config.extensions),
        downmix=config.downmix,
        threads=config.threads,
        progress=console is not None,
    )
    if config.transcribe and config.model is not None:
        add_mismatches(report, config, manifests, console)
    write_clean(report, manifests, output)
    with written_whole(output / "check.json") as file:
        file.write(to_json(report.record(), indent=1) + "\n")
    with written_whole(output / "check.html") as file:
        file.write(page(report))
    if console is not None:
        console.print(report.table())
    lines, dropped = sum(map(report.lines, manifests)), sum(len(report.dropped(name)) for name in manifests)
    print(f"lines: {lines} in, {lines - dropped} in {output / 'clean'}, {dropped} left out, {report.errors} errors")
    print(f"the report is in {output / 'check.html'}")
    if report.errors:
        sys.exit(EXIT_FINDINGS)
    return None
