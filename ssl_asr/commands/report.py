"""``ssl-asr report RUN …``: runs, comparisons and sweeps as one HTML page."""

from pathlib import Path

from ssl_asr.config.tools import ReportConfig


def report(config: ReportConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Write the page, and say what it shows and what is missing."""
    from ssl_asr.console import hush, make_console, shortened
    from ssl_asr.report.job import write_report

    hush()
    console = make_console() if config.verbose else None
    scored = write_report(config, console)
    lacking = [one.run.name for one in scored if one.run.missing or one.notes or one.run.status != "done"]
    for one in scored if len(scored) == 1 else ():
        for split, scores in one.scores.items():
            print(f"{split}: WER {100 * scores[0].wer:.2f} % ({scores[0].normalizer})")
    if lacking:
        print(f"not complete, see the page: {shortened(lacking, 5)}")
    size = Path(config.output).stat().st_size / 1e6
    what = f"{len(scored):,} runs" if len(scored) > 1 else scored[0].run.name
    print(f"the report of {what} is in {config.output} ({size:.1f} MB)")
    return None
