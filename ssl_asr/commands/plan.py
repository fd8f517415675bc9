"""``ssl-asr plan``: the memory and the time of a training run, before it starts."""

from pathlib import Path

from ssl_asr.config.schemas import PlanConfig


def plan(config: PlanConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Print the memory and the time that a run takes. Writes nothing."""
    from ssl_asr.build.plan import make_plan, planned_run, print_plan
    from ssl_asr.console import hush, make_console

    hush()
    console = make_console()
    run = planned_run(config, console if config.verbose else None)
    print_plan(make_plan(run, config), config.trainer.precision, console)
    return None
