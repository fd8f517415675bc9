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


SMALL_HEAD = ["head.width=8"]
SMALL_DECODER = ["head.width=8", "head.heads=2", "head.feed_forward=16", "head.decoder_layers=1"]
PUBLISHED = [
    ("speechbrain_tutorial", "wav2vec2_layer", SMALL_HEAD),
    ("speechbrain_tutorial", "whisper", ["backbone=whisper_tiny_en", *SMALL_HEAD]),
    ("speechbrain_tutorial_whisper", "whisper", ["decoder.max_tokens_per_s=4", "backbone.window=real"]),
    ("speechbrain_ctc", "wav2vec2_layer", SMALL_HEAD),
    ("nemo_finetune", "parakeet", ["tokenizer.size=8"]),
    ("espnet_ssl", "wavlm_layer", ["tokenizer.size=8", "trainer.accumulate_grad_batches=1", *SMALL_DECODER]),
    ("espnet_whisper", "whisper", ["decoder.max_tokens_per_s=4"]),
]


@pytest.mark.parametrize(("experiment", "toy", "more"), PUBLISHED)
def test_a_published_recipe_trains_what_its_policy_says(toy_checkpoints, toy_corpus, tmp_path, experiment, toy, more):
    overrides = [
        f"experiment={experiment}",
        *(f"data.{split}={toy_corpus[split]}" for split in ("train", "dev")),
        "data.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "logger=none",
        *more,
    ]
    run = build(tmp_path, *overrides, f"backbone.source={toy_checkpoints[toy]}")
    before = {key: p.detach().clone() for key, p in run.module.named_parameters()}
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step > 0
    moved = {key for key, p in run.module.named_parameters() if not torch.equal(p, before[key])}
    trained = {key for key, p in run.module.named_parameters() if p.requires_grad}
    assert moved <= trained
    sides = {"encoder": any(".encoder." in f".{key}" for key in moved), "rest": len(moved) > 0}
    assert sides == {"encoder": experiment not in ("espnet_ssl", "speechbrain_ctc"), "rest": True}
    assert len(run.module.configure_optimizers()[0]) == (1 if not sides["encoder"] else 2)


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
