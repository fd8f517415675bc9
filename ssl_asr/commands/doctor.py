"""``ssl-asr doctor``: check this machine, and the training run of a command line."""

from dataclasses import replace
from pathlib import Path

from ssl_asr.config.schemas import DoctorConfig
from ssl_asr.errors import UserError


def doctor(config: DoctorConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Print what the machine has, and if there are data, what the run takes. Writes nothing.

    Raises:
        UserError: Something stops every run, or the run cannot learn.
    """
    from ssl_asr.build.environment import findings, print_findings
    from ssl_asr.build.training import build_training
    from ssl_asr.build.trial import measure, print_trial
    from ssl_asr.console import hush, make_console
    from ssl_asr.training.loggers import NoLog
    from ssl_asr.training.state_cache import NoStateCache

    hush()
    console = make_console()
    rows = list(findings(config))
    print_findings(rows, console)
    wrong = [row for row in rows if row.state == "error"]
    if wrong:
        raise UserError("doctor", f"{len(wrong)} errors: {', '.join(row.name for row in wrong)}", "see the table")
    if not config.data.train:
        console.print("Give the settings of a run too, to measure it: ssl-asr doctor backbone=… data.train=…")
        return None
    # Loggers, profilers and caches of states write files.
    quiet = replace(config.trainer, profiler=None)
    measured = replace(config, logger=NoLog(), state_cache=NoStateCache(), trainer=quiet)
    run = build_training(measured, Path(config.run_dir), console if config.verbose else None)
    print_trial(measure(run, console if config.verbose else None), console)
    return None
