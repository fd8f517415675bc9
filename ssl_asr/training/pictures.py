"""Pictures of what a model makes of an utterance: CTC posteriors, and cross-attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssl_asr.types import Seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLANK_NAME = "blank"
# Labels that are drawn: those with this probability in some frame, at most so many.
_LEAST, _MOST_LABELS = 0.1, 24
_MOST_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Picture:
    """A matrix over time, to be drawn.

    Attributes:
        utterance_id: Id of the utterance.
        kind: ``posteriors`` or ``attention``.
        values_RF: float, a row for each name and a column for each frame.
        names: Label or token of each row.
        frame_s: Duration of a frame.
    """

    utterance_id: str
    kind: str
    values_RF: NDArray[np.float32]
    names: Sequence[str]
    frame_s: Seconds


def posteriors(utterance_id: str, probs_FV: Tensor, labels: Sequence[str | None], frame_s: Seconds) -> Picture:
    """The posteriors of the blank and of the most probable labels, in order of the time of their peak.

    Args:
        utterance_id: Id of the utterance.
        probs_FV: Probabilities of each frame, on the CPU. The blank is at index 0.
        labels: Texts of the labels, None for those without.
        frame_s: Duration of a frame.
    """
    if len(probs_FV) == 0:
        return Picture(utterance_id, "posteriors", np.zeros((1, 0), dtype=np.float32), [BLANK_NAME], frame_s)
    peaks_V, at_V = probs_FV.max(0)
    likely = [label for label in peaks_V.argsort(descending=True).tolist() if label != 0 and peaks_V[label] >= _LEAST]
    shown = [0, *sorted(likely[:_MOST_LABELS], key=lambda label: int(at_V[label]))]
    names = [BLANK_NAME if label == 0 else (labels[label] or "unknown").replace(" ", "␣") for label in shown]
    return Picture(utterance_id, "posteriors", probs_FV[:, shown].T.float().numpy(), names, frame_s)


def attention(utterance_id: str, weights_UF: Tensor, names: Sequence[str], frame_s: Seconds) -> Picture:
    """The attention of each token to each frame, the first 80 tokens. See `posteriors`."""
    kept = [name.strip() or "␣" for name in names[:_MOST_TOKENS]]
    return Picture(utterance_id, "attention", weights_UF[:_MOST_TOKENS].float().numpy(), kept, frame_s)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(picture: Picture) -> "Figure":
    """A figure: time on the horizontal axis, the first row at the top."""
    # Not pyplot, which keeps figures and may open windows.
    from matplotlib.figure import Figure

    rows, frames = picture.values_RF.shape
    figure = Figure(figsize=(9.0, min(12.0, 1.4 + 0.22 * rows)), layout="constrained")
    axes = figure.add_subplot()
    # A grid and the origin of images may come from the user's style.
    axes.grid(visible=False)
    end_s = max(1, frames) * picture.frame_s
    if frames:
        extent = (0.0, end_s, rows - 0.5, -0.5)
        image = axes.imshow(
            picture.values_RF, aspect="auto", interpolation="nearest", vmin=0.0, origin="upper", extent=extent
        )
        figure.colorbar(image, ax=axes, label="probability" if picture.kind == "posteriors" else "weight")
    # Dollar signs are not mathematics.
    axes.set_yticks(range(rows), [name.replace("$", r"\$") for name in picture.names], fontsize=7)
    axes.set_xlabel("time in s")
    axes.set_title(f"{picture.kind} of {picture.utterance_id}".replace("$", r"\$"), fontsize=9, loc="left")
    return figure
