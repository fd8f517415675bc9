"""Training on two ranks of one machine equals training on one rank."""

import json
import shutil

import pytest
import torch

from ssl_asr.inference.testing import transcribe_tested
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.ranks import on_ranks
from tests.training.toy_runs import build, run_train, toy_overrides

THAW = ["freeze_policy=gradual_thaw", "freeze_policy.unit=update", "freeze_policy.wait=2"]
DROPS = ["freeze=false", "backbone.layerdrop=0.5"]
JOINT = ["task=joint", "tokenizer=char", "head=attention_gru", "head.width=8", "head.decoder_width=8", "freeze=false"]


TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def train_and_test(folder, overrides):
    """Ids and texts of each set that a rank has after training and testing."""
    torch.set_num_threads(1)
    run = build(folder, *overrides)
    run.trainer.fit(run.module, datamodule=run.data)
    return {name: [(p.id, p.hyp) for p in rows] for name, rows in transcribe_tested(run, folder).predictions.items()}


@pytest.mark.parametrize("policy", [["freeze=false"], THAW], ids=["everything trains", "layers thaw"])
def test_two_ranks_train_and_score_like_one_rank(toy_checkpoints, toy_corpus, tmp_path, request, policy):
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
    first, second = on_ranks(train_and_test, 2, tmp_path / "two", [*overrides, *TWO])
    request.getfixturevalue("batches_of_two_ranks")
    alone = train_and_test(tmp_path / "one", [*overrides, "trainer.accumulate_grad_batches=2"])
    assert first == second == alone, "each id once, and the same texts for any number of ranks"
    assert len(alone["test"]) == 5
    two, one = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("two", "one"))
    assert two["global_step"] == one["global_step"] > 4
    for name, value in one["state_dict"].items():
        if torch.is_floating_point(value):
            torch.testing.assert_close(two["state_dict"][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_ranks_that_drop_other_layers_agree_on_which_parameters_have_gradients(toy_checkpoints, toy_corpus, tmp_path):
    """DDP does not search for unused parameters, so it would wait for them forever."""
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "data.max_batch_s=1.6", *DROPS, *TWO]
    on_ranks(train_and_test, 2, tmp_path, [*overrides, "trainer.max_epochs=3"])
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] > 4


def test_a_command_starts_its_second_rank_and_reports_each_utterance_once(toy_checkpoints, toy_corpus, tmp_path):
    """The second rank is started by the name of the first one's command, whichever way that was spelled."""
    overrides = [o for o in toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus) if o != "task=ctc"]
    done = run_train(tmp_path, *overrides, "data.max_batch_s=1.6", *JOINT, *TWO, start=["-m", "ssl_asr", "train"])
    assert done["global_step"] > 2
    rows = [json.loads(line) for line in open(tmp_path / "predictions" / "test.jsonl")]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test"]["scores"]["lower"]["utterances"] == len(rows) == len({row["id"] for row in rows}) == 5
