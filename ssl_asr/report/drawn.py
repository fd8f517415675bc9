"""Pictures of two utterances of a run: CTC posteriors or cross-attention, drawn by its model."""

import html
from collections.abc import Sequence

import torch

from ssl_asr.errors import AudioError, UserError
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.metrics.report import Prediction
from ssl_asr.pages.pictures import matrix
from ssl_asr.report.errors import aligned
from ssl_asr.report.scored import Scored
from ssl_asr.report.sounds import Sounds
from ssl_asr.report.stored import TITLE
from ssl_asr.training.media import spoken_batch
from ssl_asr.training.module import ASRModule

_DRAWN = 2


def drawn_section(scored: Scored, sounds: Sounds, extensions: Sequence[str]) -> str:
    """HTML of two utterances with pictures by the model, which is loaded. A reason if it cannot be loaded.

    Args:
        scored: The run.
        sounds: Players of utterances.
        extensions: Packages whose classes the model may use.
    """
    run = scored.run
    split = next((name for name in scored.scores if name in run.splits), None)
    name = str(run.path) if (run.path / "checkpoints").is_dir() else run.fact("model")
    if split is None or not isinstance(name, str):
        return f'{TITLE}<p class="note">No pictures: the run has no {"predictions" if split is None else "model"}.</p>'
    rows = sorted(run.splits[split], key=lambda row: row.id)
    shown = rows[:: max(1, len(rows) // _DRAWN)][:_DRAWN]
    try:
        module = load_model(name, InferenceOptions(extensions=tuple(extensions)))
        parts = [_utterance(row, module, scored, sounds) for row in shown]
    except UserError as error:
        return f'{TITLE}<p class="warning">No pictures: {html.escape(str(error))}</p>'
    return TITLE + "".join(parts)


def _utterance(row: Prediction, module: ASRModule, scored: Scored, sounds: Sounds) -> str:
    head = f"<article><header><b>{html.escape(row.id)}</b></header>{sounds.player(row)}"
    text = aligned(*row.pair(scored.normalize))
    try:
        batch = spoken_batch(row.utterance(), module.tokenizer)
    except AudioError as error:
        return f'{head}{text}<p class="warning">No picture: {html.escape(str(error))}</p></article>'
    with torch.no_grad():
        found = module.pictures(batch.to(module.device))
    pictures = "".join(
        matrix(one.kind, one.values_RF, one.names, one.values_RF.shape[1] * one.frame_s) for one in found
    )
    return f"{head}{text}{pictures or '<p>The model has no pictures.</p>'}</article>"
