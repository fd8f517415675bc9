"""Options in combination: each recipe trains, and its checkpoint restores the model."""

import pytest
import torch

from ssl_asr.build.restore import restore_module
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.training.toy_runs import build, toy_overrides

RECIPES = {
    "bilstm": ["head=bilstm", "head.width=8"],
    "batch norm": ["head=dnn", "head.width=8", "head.norm=batch"],
    "weighted sum": ["states=weighted_sum", "states.layer_norm=true", "freeze=true"],
    "chosen layer, joined": ["states=layer", "states.layer=1", "states.stride=2"],
    "pieces": ["tokenizer=bpe", "tokenizer.size=8"],
    "symbols": ["tokenizer=symbols"],
    "masked": ["augment=spec_augment", "augment.time_span=2", "augment.feature_span=2"],
    "fairseq": [
        "optimizer@optimizers.encoder=adam",
        "optimizer@optimizers.rest=adam",
        "scheduler@schedulers.encoder=tri_stage",
        "scheduler@schedulers.rest=tri_stage",
    ],
    "others": [
        "optimizer@optimizers.encoder=sgd",
        "optimizers.encoder.lr=1.0",
        "optimizers.encoder.layer_decay=0.5",
        "scheduler@schedulers.encoder=inverse_sqrt",
        "scheduler@schedulers.rest=noam",
    ],
}


@pytest.mark.parametrize("backbone", ["wav2vec2_layer", "whisper"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_and_checkpoint_restores_the_model(toy_checkpoints, toy_corpus, tmp_path, name, backbone):
    more = ["head=linear", *RECIPES[name]] if "head=bilstm" not in RECIPES[name] else RECIPES[name]
    overrides = [o for o in toy_overrides(toy_checkpoints[backbone], toy_corpus) if "max_epochs" not in o]
    run = build(tmp_path, *overrides, "tokenizer=char", *more, "decoder=ctc_greedy", "trainer.max_epochs=1")
    before = {key: value.clone() for key, value in run.module.state_dict().items()}
    run.trainer.fit(run.module, datamodule=run.data)
    moved = {key for key, value in run.module.state_dict().items() if not torch.equal(value, before[key])}
    trained = {key for key, p in run.module.named_parameters() if p.requires_grad}
    # A bias of the keys adds the same value to all scores of a row, so its gradient is zero up to rounding.
    assert {key for key in trained - moved if "k_proj.bias" not in key} == set()
    assert {key for key, _ in run.module.named_parameters()} & moved <= trained
    twin = restore_module(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")).eval()
    batch = next(iter(run.data.val_dataloader()[0]))
    torch.testing.assert_close(twin.log_probs(batch)[0], run.module.eval().log_probs(batch)[0])
