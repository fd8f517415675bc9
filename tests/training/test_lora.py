"""Training with LoRA: the weights that change, the content of checkpoints, and restored models."""

import shutil

import pytest
import torch

from ssl_asr.build.restore import restore_module
from ssl_asr.errors import CheckpointError
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests import toys
from tests.training.toy_runs import build, toy_overrides

BACKBONES = [("wav2vec2_layer", "ctc"), ("wavlm_group", "ctc"), ("whisper", "seq2seq")]


def overrides_of(checkpoint, corpus, task, *more):
    return [*toy_overrides(checkpoint, corpus, task), "freeze_policy=lora", "freeze_policy.rank=2", *more]


def loss_and_texts(run_or_module, run):
    batch = next(iter(run.data.val_dataloader()[0]))
    module = run_or_module.eval()
    with torch.inference_mode():
        loss = module.loss(batch)
        return loss.total / loss.count, [h.text for h in module.transcribe(batch)]


@pytest.mark.parametrize("kept", ["whole", "adapter"])
@pytest.mark.parametrize(("backbone", "task"), BACKBONES)
def test_only_adapters_and_head_change_and_restored_model_is_merged(
    toy_checkpoints, toy_corpus, tmp_path, backbone, task, kept
):
    more = [f"freeze_policy.checkpoint={kept}", "optimizers.encoder.lr=0.05", "optimizers.rest.lr=0.05"]
    run = build(tmp_path, *overrides_of(toy_checkpoints[backbone], toy_corpus, task, *more))
    before = {key: value.clone() for key, value in run.module.state_dict().items()}
    run.trainer.fit(run.module, datamodule=run.data)
    moved = {key for key, value in run.module.state_dict().items() if not torch.equal(value, before[key])}
    trained = {key for key, p in run.module.named_parameters() if p.requires_grad}
    assert trained == {key for key in before if "lora_" in key or key.startswith("head.")}
    assert {key for key in moved if not key.startswith("_metrics.")} == trained
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    saved = {key for key in checkpoint["state_dict"] if not key.startswith("_metrics.")}
    assert trained <= saved
    if kept == "adapter":
        assert not saved & {key for key, p in run.module.named_parameters() if not p.requires_grad}
    twin = restore_module(checkpoint)
    assert not any("lora_" in key for key in twin.state_dict())
    (loss, texts), (twin_loss, twin_texts) = loss_and_texts(run.module, run), loss_and_texts(twin, run)
    torch.testing.assert_close(twin_loss, loss, atol=1e-4, rtol=1e-4)
    assert twin_texts == texts


def test_adapter_checkpoint_with_other_pretrained_weights_raises_checkpoint_error(
    toy_checkpoints, toy_corpus, tmp_path
):
    pretrained = tmp_path / "pretrained"
    shutil.copytree(toy_checkpoints["hubert_layer"], pretrained)
    run = build(tmp_path / "run", *overrides_of(pretrained, toy_corpus, "ctc", "freeze_policy.checkpoint=adapter"))
    run.trainer.fit(run.module, datamodule=run.data)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    other = toys.transformers.HubertModel.from_pretrained(pretrained)
    torch.nn.init.normal_(other.encoder.layers[0].attention.k_proj.weight)
    other.save_pretrained(pretrained)
    with pytest.raises(CheckpointError, match="other pretrained weights"):
        restore_module(read_checkpoint(path))
    shutil.rmtree(pretrained)
    with pytest.raises(CheckpointError):
        restore_module(read_checkpoint(path))


@pytest.mark.parametrize("kept", ["whole", "adapter"])
def test_resumed_lora_run_equals_uninterrupted_run(toy_checkpoints, toy_corpus, tmp_path, kept):
    def overrides(epochs):
        made = overrides_of(toy_checkpoints["wav2vec2_layer"], toy_corpus, "ctc", f"freeze_policy.checkpoint={kept}")
        made = [o for o in made if "max_epochs" not in o]
        return [*made, f"trainer.max_epochs={epochs}", "scheduler@schedulers.rest=constant"]

    whole = build(tmp_path / "whole", *overrides(2), "scheduler@schedulers.encoder=constant")
    whole.trainer.fit(whole.module, datamodule=whole.data)
    half = build(tmp_path / "half", *overrides(1), "scheduler@schedulers.encoder=constant")
    half.trainer.fit(half.module, datamodule=half.data)
    rest = build(tmp_path / "rest", *overrides(2), "scheduler@schedulers.encoder=constant")
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    rest.trainer.fit(rest.module, datamodule=rest.data, ckpt_path=str(last))
    for key, value in whole.module.state_dict().items():
        if not key.startswith("_metrics."):
            assert torch.equal(rest.module.state_dict()[key], value), key
