"""Audio whose header is right and whose samples are not: counted, written, shown, and an error above a limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.build.training import write_beginning
from ssl_asr.console import Notice
from ssl_asr.data.filters import Selection
from ssl_asr.data.manifest import pack_rows
from ssl_asr.errors import TrainingError
from ssl_asr.inference.testing import transcribe_tested
from ssl_asr.training import skips as module_of_skips
from ssl_asr.training.skips import LateSkips
from ssl_asr.types import Skip
from tests.command_runner import REPO
from tests.training.toy_runs import build, toy_overrides


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Manifests of FLAC files by split. ``cut``: every file ends at half its bytes. ``half``: every other one does."""
    folder = tmp_path_factory.mktemp("cut")
    rng = np.random.default_rng(0)
    manifests = {}
    for split, count in (("train", 8), ("dev", 4), ("test", 4)):
        rows = []
        for number in range(count):
            path = folder / f"{split}{number}.flac"
            soundfile.write(path, 0.3 * rng.standard_normal(12_000), 16_000)
            (folder / f"cut_{path.name}").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            rows.append({"id": path.stem, "audio_filepath": path.name, "duration": 0.75, "text": "ab cab"})
        for kind, period in (("whole", 1), ("half", 2), ("cut", 1)):
            damaged = set() if kind == "whole" else set(range(0, count, period))
            lines = [
                row | {"audio_filepath": f"{'cut_' if number in damaged else ''}{row['audio_filepath']}"}
                for number, row in enumerate(rows)
            ]
            manifests[f"{split}_{kind}"] = folder / f"{split}_{kind}.jsonl"
            manifests[f"{split}_{kind}"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifests


def overrides(toy_checkpoints, cut, *, train="whole", dev="whole", test="whole"):
    corpus = {"train": cut[f"train_{train}"], "dev": cut[f"dev_{dev}"], "test": cut[f"test_{test}"]}
    return [*toy_overrides(toy_checkpoints["wav2vec2_group"], corpus), "freeze=true", "data.max_batch_s=1.6"]


@pytest.mark.parametrize(
    ("splits", "named", "count"),
    [
        ({"train": "cut"}, "train_cut", "2 of 8"),  # in the first update
        ({"train": "half"}, "train_half", "1 of 8|2 of 8"),
        ({"dev": "half"}, "dev_half", "2 of 4"),
        ({"dev": "cut"}, "dev_cut", "4 of 4"),
    ],
    ids=lambda value: str(value),
)
def test_too_much_unreadable_audio_ends_training(toy_checkpoints, cut, tmp_path, splits, named, count):
    run = build(tmp_path, *overrides(toy_checkpoints, cut, **splits))
    write_beginning(run, tmp_path, resumed=False)
    assert rows_of(tmp_path / "skipped.jsonl") == [], "headers are right"
    where = rf"{named}\.jsonl: ({count}) utterances dropped \(decode_error \d\): .*raise data\.max_skip_fraction"
    with pytest.raises(TrainingError, match=where):
        run.trainer.fit(run.module, datamodule=run.data)
    assert "val/wer" not in run.trainer.callback_metrics
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    rows = rows_of(tmp_path / "skipped.jsonl")
    assert rows
    assert {(row["split"], row["reason"], row["epoch"]) for row in rows} == {(*splits, "decode_error", 0)}


def test_the_last_good_checkpoint_is_kept(toy_checkpoints, cut, tmp_path):
    run = build(tmp_path, *overrides(toy_checkpoints, cut), "trainer.max_epochs=3")
    write_beginning(run, tmp_path, resumed=False)
    read = run.data.train_dataloader

    def damaged_later():
        if run.trainer.current_epoch == 1:
            run.data.selections["train"].kept = (
                build(tmp_path / "other", *overrides(toy_checkpoints, cut, train="cut")).data.selections["train"].kept
            )
        return read()

    run.data.train_dataloader = damaged_later
    with pytest.raises(TrainingError, match="The last checkpoint is kept"):
        run.trainer.fit(run.module, datamodule=run.data)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (0, 4)


def test_what_is_allowed_is_written_and_shown_each_epoch(toy_checkpoints, cut, tmp_path, capsys):
    more = ["data.max_skip_fraction=0.5"]
    run = build(tmp_path, *overrides(toy_checkpoints, cut, train="half", dev="half", test="half"), *more)
    write_beginning(run, tmp_path, resumed=False)
    run.trainer.fit(run.module, datamodule=run.data)
    said = capsys.readouterr().err
    for epoch in (0, 1):
        assert f"warning: epoch {epoch}, train: 4 of 8 utterances could not be read: decode_error 4: train" in said
        assert f"warning: epoch {epoch}, dev: 2 of 4 utterances could not be read: decode_error 2: dev" in said
    tested = transcribe_tested(run, tmp_path)
    assert tested.refused == []
    assert {name: len(rows) for name, rows in tested.predictions.items()} == {"dev": 2, "test": 2}
    rows = rows_of(tmp_path / "skipped.jsonl")
    assert sorted((row["split"], row["id"]) for row in rows) == [
        *(("dev", f"dev{i}") for i in (0, 2)),
        *(("test", f"test{i}") for i in (0, 2)),
        *(("train", f"train{i}") for i in (0, 2, 4, 6)),
    ]
    run.module.skips.print_totals()
    totals = capsys.readouterr().err
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        assert f"skipped in {split} during the run: {count} (decode_error {count}). See " in totals
    # A resumed run keeps the rows of the part before it.
    again = build(tmp_path / "again", *overrides(toy_checkpoints, cut))
    write_beginning(again, tmp_path, resumed=True)
    assert rows_of(tmp_path / "skipped.jsonl") == rows
    write_beginning(again, tmp_path, resumed=False)
    assert rows_of(tmp_path / "skipped.jsonl") == []


def test_a_test_set_that_loses_too_much_has_no_score(toy_checkpoints, cut, tmp_path):
    more = [f"data.test={{good: {cut['test_whole']}, bad: {cut['test_half']}}}", "data.allow_duplicate_ids=true"]
    run = build(tmp_path, *overrides(toy_checkpoints, cut), "trainer.max_epochs=1", *more)
    run.trainer.fit(run.module, datamodule=run.data)
    tested = transcribe_tested(run, tmp_path)
    assert sorted(tested.predictions) == ["dev", "good"]
    [error] = tested.refused
    assert str(error).startswith(f"{cut['test_half']}: 2 of 4 utterances dropped (decode_error 2): test0: decode_error")


def test_ranks_add_up_what_each_of_them_skips(tmp_path, monkeypatch):
    """Two ranks that skip two of ten each: 0.4 is the sum, which no rank sees alone. Both ranks raise."""
    rows = [{"id": f"u{i}", "audio_filepath": "a.wav", "duration": 1.0, "text": "a"} for i in range(10)]
    manifest = pack_rows(rows, tmp_path)
    own = [[Skip(f"u{2 * rank + i}", "", "decode_error", "", 1.0) for i in (0, 1)] for rank in (0, 1)]
    monkeypatch.setattr(module_of_skips, "over_ranks", lambda skips: [*own[0], *own[1]] if skips else [])
    for limit, refused in ((0.4, False), (0.39, True)):
        raised = []
        for rank in (0, 1):
            late = LateSkips({"train": Selection("train", manifest, manifest)}, max_fraction=limit)
            late.begin("train")
            late.add("train", own[rank])
            assert late.uncounted("train") == 2
            assert late.uncounted("train") == 0
            try:
                late.count("train", 2 + 2, epoch=0)
                late.finish("train", epoch=0)
            except TrainingError as error:
                raised.append(str(error))
            assert [skip.id for skip in late.found["train"]] == ["u0", "u1", "u2", "u3"]
        assert [message.count("4 of 10 utterances dropped (decode_error 4)") for message in raised] == [1, 1] * refused


def test_damaged_lines_of_an_earlier_part_are_left_out_and_counted(tmp_path):
    rows = [{"id": "u0", "audio_filepath": "a.wav", "duration": 1.0, "text": "a"}]
    manifest = pack_rows(rows, tmp_path)
    path = tmp_path / "skipped.jsonl"
    late = {"split": "train", "id": "u0", "epoch": 3}
    path.write_bytes(b"\xff{\n" + json.dumps(late).encode() + b"\n[1]\n" + b"\0" * 9 + b'\n{"id": "u1"}\n{"spl')
    skips = LateSkips({"train": Selection("train", manifest, manifest)}, max_fraction=0.5)
    with pytest.warns(Notice, match="skipped.jsonl: 4 of 6 lines are damaged, and are left out"):
        skips.open(path, resumed=True)
    assert rows_of(path) == [late]


@pytest.mark.slow
def test_two_ranks_stop_together(toy_checkpoints, cut, tmp_path):
    """Half of train is cut. One of the ranks may read only whole files in the first update."""
    more = ["trainer.devices=2", "trainer.strategy=ddp", "verbose=false", f"run_dir={tmp_path}/run"]
    words = [*overrides(toy_checkpoints, cut, train="half"), *more]
    done = subprocess.run(
        [sys.executable, "-m", "ssl_asr.train", *words],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=900,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "of 8 utterances dropped (decode_error" in done.stderr
    assert "Traceback" not in done.stderr
    assert {row["split"] for row in rows_of(tmp_path / "run" / "skipped.jsonl")} == {"train"}
