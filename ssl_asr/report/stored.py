"""Pictures that the W&B logger stored in the folder of a run."""

import base64
import html
import re
from pathlib import Path

from ssl_asr.report.runs import Run

TITLE = "<h2>What the model sees</h2>"
_MOST = 4
# val/attention/1_240_c7a2.png has the place of the utterance and the step.
_STORED = re.compile(r"(?P<place>\d+)_(?P<step>\d+)_\w+\.png")


def stored_section(run: Run) -> str:
    """HTML of the last pictures that the W&B logger stored in the folder of a run. "" without."""
    last: dict[tuple[str, str], tuple[int, Path]] = {}
    for path in sorted(run.path.glob("wandb/*/files/media/images/val/*/*.png")):
        found = _STORED.fullmatch(path.name)
        if found is not None:
            key = path.parent.name, found["place"]
            last[key] = max(last.get(key, (-1, path)), (int(found["step"]), path))
    figures = []
    for (kind, place), (step, path) in sorted(last.items())[:_MOST]:
        data = base64.b64encode(path.read_bytes()).decode()
        label = html.escape(f"{kind}, utterance {place}, step {step}")
        picture = f'<img alt="{label}" src="data:image/png;base64,{data}">'
        figures.append(f"<figure><figcaption>{label}</figcaption>{picture}</figure>")
    return f'{TITLE}<div class="plots">{"".join(figures)}</div>' if figures else ""
