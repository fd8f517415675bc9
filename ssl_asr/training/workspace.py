"""A W&B workspace with the panels that a speech recognizer needs. The names of numbers are those that runs log.

No other module imports wandb_workspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

_STEP = "trainer/global_step"


def make_workspace(*, entity: str, project: str, name: str, splits: Sequence[str]) -> workspaces.Workspace:
    """Builds a workspace. Nothing is sent to W&B.

    Args:
        entity: str, W&B user or team.
        project: str, W&B project.
        name: str, title of the workspace.
        splits: names of the scored splits, such as ``dev`` and ``test``.
    """
    scores = [
        _lines("Dev WER, and its 95 % interval", "val/wer", "val/wer_low", "val/wer_high"),
        _lines("Lowest dev WER so far", "val/wer_best"),
        _lines("Dev CER", "val/cer"),
        *(panels.BarPlot(title=f"{split} WER", metrics=[f"{split}/wer"]) for split in splits),
        panels.WeavePanelSummaryTable(table_name="results"),
    ]
    training = [
        _lines("Loss", "train/loss", "val/loss"),
        _lines("Learning rates", "lr/encoder", "lr/rest"),
        _lines("Gradient norms", "train/grad_norm", "train/grad_norm/encoder", "train/grad_norm/rest"),
        _lines("Skipped updates", "train/nonfinite_updates"),
        _lines("Masked share", "train/masked_share"),
    ]
    speed = [
        _lines("Seconds of audio in a second", "train/audio_s_per_s"),
        _lines("Share of the peak of the card (MFU)", "train/mfu"),
        _lines("Padding, and fill of batches", "train/padding", "train/fill"),
        _lines("Share of the time that waits for the loader", "train/loader_wait"),
        _lines("Seconds that training waits for checkpoints", "train/checkpoint_wait_s"),
        _lines("Memory in GB", "train/peak_gb"),
    ]
    pictures = [f"val/{kind}/{place}" for kind in ("posteriors", "attention") for place in (1, 2)]
    utterances = [
        panels.WeavePanelSummaryTable(table_name="val/predictions"),
        panels.MediaBrowser(title="Posteriors and attention", media_keys=pictures),
        *(panels.WeavePanelSummaryTable(table_name=f"{split}/worst") for split in splits),
    ]
    sweep = [
        panels.ParallelCoordinatesPlot(
            title="Choices and scores",
            columns=[
                *(panels.ParallelCoordinatesPlotColumn(panels.Config(key)) for key in ("freeze", "seed")),
                *(panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(key)) for key in _compared(splits)),
            ],
        ),
        panels.ScatterPlot(
            title="Size and score",
            x=panels.SummaryMetric("model/trainable"),
            y=panels.SummaryMetric("val/wer_best"),
            log_x=True,
        ),
    ]
    named = {"Scores": scores, "Utterances": utterances, "Training": training, "Speed": speed, "Sweep": sweep}
    sections = [workspaces.Section(name=title, panels=found, is_open=True) for title, found in named.items()]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)


def _lines(title: str, *names: str) -> panels.LinePlot:
    return panels.LinePlot(title=title, x=_STEP, y=[*names])


def _compared(splits: Sequence[str]) -> list[str]:
    return ["val/wer_best", *(f"{split}/wer" for split in splits)]


def workspace_record(workspace: workspaces.Workspace) -> dict[str, Any]:
    """Plain data of a workspace, as W&B stores it."""
    record: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return record
