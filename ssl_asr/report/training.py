"""The training of one or more runs as charts: losses, error rates, learning rates, gradient norms, speed."""

from collections.abc import Sequence

from ssl_asr.pages.charts import COLORS, Series, curves
from ssl_asr.report.runs import Run

_UPDATES = "update"


def training_charts(runs: Sequence[Run]) -> str:
    """HTML of the charts. With several runs, each has a color. "" if no number was logged."""
    several = len(runs) > 1
    charts = [
        *_each(runs, "Loss", {"train/loss": "train", "val/loss": "dev"}),
        curves("WER on dev in %", _wers(runs), x=_UPDATES, note="" if several else "with its 95 % interval", zero=True),
        *_each(runs, "Learning rate", {"lr/encoder": "encoder", "lr/rest": "rest"}),
        curves("Gradient norm", _series(runs, _norms(runs)), x=_UPDATES),
        curves("Speed in seconds of audio a second", _series(runs, {"train/audio_s_per_s": ""}), x=_UPDATES, zero=True),
        curves("Memory at its peak in GB", _series(runs, {"train/peak_gb": ""}), x=_UPDATES, zero=True),
    ]
    shown = [chart for chart in charts if chart]
    if not shown:
        return ""
    return f'<h2>Training</h2><div class="plots">{"".join(shown)}</div>'


def _each(runs: Sequence[Run], title: str, names: dict[str, str]) -> list[str]:
    """One chart of several numbers of a run, or one for each number of several runs."""
    if len(runs) == 1:
        return [curves(title, _series(runs, names), x=_UPDATES)]
    return [curves(f"{title}, {label}", _series(runs, {name: ""}), x=_UPDATES) for name, label in names.items()]


def _norms(runs: Sequence[Run]) -> dict[str, str]:
    """The norm of all parameters, and of each side where they are logged and one run is shown."""
    sides = {"train/grad_norm/encoder": "encoder", "train/grad_norm/rest": "rest"}
    one = len(runs) == 1 and all(runs[0].curves.get(name) for name in sides)
    return {"train/grad_norm": "all" if one else "", **(sides if one else {})}


def _series(runs: Sequence[Run], names: dict[str, str]) -> list[Series]:
    """A curve for each number of each run. One run has a color for each number, several have one for each run."""
    found = []
    for place, run in enumerate(runs):
        for dash, (name, label) in enumerate(names.items()):
            curve = run.curves.get(name, [])
            many = len(runs) > 1
            title = " ".join(filter(None, [run.name if many else "", label]))
            color = place % COLORS if many else dash
            found.append(
                Series(
                    name=title,
                    x=[x for x, _ in curve],
                    y=[y for _, y in curve],
                    color=color,
                    dash=dash + (place // COLORS if many else 0),
                    marks=0 < len(curve) <= 20,
                )
            )
    return found


def _wers(runs: Sequence[Run]) -> list[Series]:
    """The dev WER in percent. Of one run with its interval, and under each normalizer."""
    if len(runs) > 1:
        names = {"val/wer": ""}
    else:
        under = [name.removeprefix("val/wer/") for name in runs[0].curves if name.startswith("val/wer/")]
        names = {f"val/wer/{name}": name for name in under} or {"val/wer": "dev"}
    found = []
    for place, one in enumerate(_series(runs, names)):
        band: list[tuple[float, float]] = []
        if len(runs) == 1 and place == 0:
            low, high = (dict(runs[0].curves.get(f"val/wer_{end}", [])) for end in ("low", "high"))
            if all(x in low and x in high for x in one.x):
                band = [(100 * low[x], 100 * high[x]) for x in one.x]
        found.append(
            Series(
                name=one.name,
                x=one.x,
                y=[100 * y for y in one.y],
                band=band,
                color=one.color,
                dash=one.dash,
                marks=one.marks,
            )
        )
    return found
