"""The metrics of a resumed run continue those of its first part."""

import csv

import pytest

from ssl_asr.errors import CheckpointError
from ssl_asr.training.csv_log import ContinuedCsvLogger, keep_metrics, read_curves


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder, rows):
    logger = ContinuedCsvLogger(save_dir=folder, name="", version="metrics")
    for step, metrics in rows:
        logger.log_metrics(metrics, step=step)
    logger.save()


def test_second_logger_appends_and_new_columns_keep_old_rows(tmp_path):
    log(tmp_path, [(0, {"loss": 2.0}), (1, {"loss": 1.5, "wer": 0.5})])
    log(tmp_path, [(2, {"loss": 1.0})])
    log(tmp_path, [(3, {"accuracy": 0.25})])
    assert [dict(row) for row in rows_of(tmp_path / "metrics" / "metrics.csv")] == [
        {"accuracy": "", "loss": "2.0", "step": "0", "wer": ""},
        {"accuracy": "", "loss": "1.5", "step": "1", "wer": "0.5"},
        {"accuracy": "", "loss": "1.0", "step": "2", "wer": ""},
        {"accuracy": "0.25", "loss": "", "step": "3", "wer": ""},
    ]


def test_logger_that_is_stopped_before_it_writes_keeps_the_file(tmp_path):
    log(tmp_path, [(0, {"loss": 2.0})])
    log(tmp_path, [])
    assert len(rows_of(tmp_path / "metrics" / "metrics.csv")) == 1


def test_curves_are_what_was_logged_by_update(tmp_path):
    log(tmp_path, [(0, {"train/loss": 2.0}), (9, {"train/loss": 1.5}), (9, {"val/wer": 0.0})])
    assert read_curves(tmp_path) == {"train/loss": [(1, 2.0), (10, 1.5)], "val/wer": [(10, 0.0)]}
    with pytest.raises(CheckpointError, match="has no metrics/metrics.csv"):
        read_curves(tmp_path / "metrics")


def test_rows_after_the_checkpoint_move_to_another_file(tmp_path):
    log(tmp_path, [(step, {"loss": float(step)}) for step in range(6)])
    keep_metrics(tmp_path, 4)
    log(tmp_path, [(step, {"loss": 10.0 + step}) for step in range(4, 7)])
    kept = [float(row["loss"]) for row in rows_of(tmp_path / "metrics" / "metrics.csv")]
    assert kept == [0, 1, 2, 3, 14, 15, 16]
    before = rows_of(tmp_path / "metrics" / "metrics-before-resume-1.csv")
    assert [float(row["loss"]) for row in before] == [0, 1, 2, 3, 4, 5]
    keep_metrics(tmp_path, 5)
    assert len(rows_of(tmp_path / "metrics" / "metrics-before-resume-2.csv")) == 7


def test_nothing_moves_if_the_checkpoint_is_the_last_update(tmp_path):
    keep_metrics(tmp_path, 3)
    log(tmp_path, [(step, {"loss": 1.0}) for step in range(3)])
    keep_metrics(tmp_path, 3)
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["metrics.csv"]


def test_run_that_starts_again_keeps_the_old_rows_in_another_file(tmp_path):
    log(tmp_path, [(0, {"loss": 1.0})])
    keep_metrics(tmp_path, 0)
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["metrics-before-resume-1.csv"]


def test_incomplete_last_line_of_a_killed_process_is_left_out(tmp_path):
    log(tmp_path, [(step, {"loss": float(step)}) for step in range(13)])
    path = tmp_path / "metrics" / "metrics.csv"
    # The line "12.0,12" ends in the middle of a number.
    path.write_bytes(path.read_bytes()[:-3])
    keep_metrics(tmp_path, 13)
    log(tmp_path, [(12, {"loss": 20.0})])
    assert [float(row["loss"]) for row in rows_of(path)] == [*range(12), 20.0]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\0garbage\n,,,\n",
        b"epoch,step,loss\n0,0,1.0\n\xff\n",
        b"epoch,step,loss\n0,one,1.0\n",
        b"epoch,step,loss\n0\n",
        b"epoch,loss\n0,1.0\n",
        b'epoch,step,loss\n0,0,"1.0\n',
        b"\0" * 4096 + b"\n",
    ],
)
def test_a_damaged_file_is_kept_beside_a_new_one(tmp_path, recwarn, content):
    """As a power cut leaves it. A log does not stop a run."""
    path = tmp_path / "metrics" / "metrics.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    logger = ContinuedCsvLogger(save_dir=tmp_path, name="", version="metrics")
    logger.log_hyperparams({"a": 1})
    keep_metrics(tmp_path, 5)
    assert [str(each.message) for each in recwarn.list] == [
        f"{path}: is damaged. It is now metrics-before-resume-1.csv, and a new file begins"
    ]
    assert (path.parent / "metrics-before-resume-1.csv").read_bytes() == content
    again = ContinuedCsvLogger(save_dir=tmp_path, name="", version="metrics")
    again.log_metrics({"loss": 0.5}, step=5)
    again.save()
    assert [row["step"] for row in csv.DictReader(path.open())] == ["5"]
