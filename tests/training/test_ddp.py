"""Training on two ranks of one machine equals training on one rank."""

import json
import shutil

import pytest
import torch

from tests.training.toy_runs import run_train, toy_overrides

# One process that plans epochs for two ranks, so it gets the batches of both ranks in turn.
AS_TWO = """
from ssl_asr.data import sampler
plain = sampler.plan_epoch
sampler.plan_epoch = lambda *a, **k: plain(*a, **{**k, "world_size": 2})
from ssl_asr.__main__ import run_command
run_command("train")
"""
THAW = ["freeze_policy=gradual_thaw", "freeze_policy.unit=update", "freeze_policy.wait=2"]
DROPS = ["freeze=false", "backbone.layerdrop=0.5"]
JOINT = ["task=joint", "tokenizer=char", "head=attention_gru", "head.width=8", "head.decoder_width=8", "freeze=false"]


@pytest.mark.parametrize("policy", [["freeze=false"], THAW], ids=["everything trains", "layers thaw"])
def test_two_ranks_train_and_score_like_one_rank(toy_checkpoints, toy_corpus, tmp_path, policy):
    checkpoint = tmp_path / "no_dropout"
    shutil.copytree(toy_checkpoints["hubert_layer"], checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {key: 0.0 for key in config if key.endswith("dropout")}
    (checkpoint / "config.json").write_text(json.dumps(config))
    overrides = [
        *toy_overrides(checkpoint, toy_corpus),
        *policy,
        "head.dropout=0.0",
        "data.max_batch_s=1.6",
        "optimizers.encoder.lr=0.003",
        "optimizers.encoder.eps=1e-3",
        "optimizers.rest.eps=1e-3",
        "trainer.gradient_clip_val=0.5",
        "trainer.max_epochs=2",
    ]
    two = run_train(tmp_path / "two", *overrides, "trainer.devices=2", "trainer.strategy=ddp")
    one = run_train(tmp_path / "one", *overrides, "trainer.accumulate_grad_batches=2", start=["-c", AS_TWO])
    assert two["global_step"] == one["global_step"] > 4
    reports = []
    for folder in ("two", "one"):
        rows = [json.loads(line) for line in open(tmp_path / folder / "predictions" / "test.jsonl")]
        reports.append([(row["id"], row["hyp"]) for row in rows])
        results = json.loads((tmp_path / folder / "results.json").read_text())
        assert results["test"]["scores"]["lower"]["utterances"] == len(rows) == 5
    assert reports[0] == reports[1], "each id once, and the same texts for any number of ranks"
    for name, value in one["state_dict"].items():
        if torch.is_floating_point(value):
            torch.testing.assert_close(two["state_dict"][name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("more", [DROPS, JOINT], ids=["dropped layers", "joint task"])
def test_ranks_agree_on_which_parameters_have_gradients(toy_checkpoints, toy_corpus, tmp_path, more):
    """Each rank drops other layers. DDP does not search for unused parameters, so it would wait for them forever."""
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "data.max_batch_s=1.6", *more]
    overrides = [o for o in overrides if not (o == "task=ctc" and "task=joint" in more)]
    overrides += ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=3"]
    # The second rank is started by the name of the first one's command, whichever way that was spelled.
    done = run_train(tmp_path / "two", *overrides, start=["-m", "ssl_asr", "train"])
    assert done["global_step"] > 4
