"""The test of a finished run: which weights transcribe which splits."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_asr.inference import testing
from ssl_asr.inference.batches import Transcripts
from ssl_asr.training.skips import LateSkips


@pytest.mark.parametrize(
    ("names", "val", "limit", "test_dev", "tested"),
    [
        (["test"], 1.0, 1.0, True, ["best", "averaged"]),
        (["test"], 0, 1.0, False, ["best", "averaged"]),
        (["test"], 1.0, 0, True, []),
        ([], 1.0, 1.0, True, []),
    ],
)
def test_each_kept_checkpoint_is_tested(monkeypatch, names, val, limit, test_dev, tested):
    loaded, done = [], []
    module = SimpleNamespace(with_frozen=lambda weights, _: weights, skips=LateSkips())
    monkeypatch.setattr(testing, "load_whole", lambda _, weights: loaded.append(weights))
    monkeypatch.setattr(testing, "final_checkpoints", lambda *_: {"": Path("best"), "-averaged": Path("averaged")})
    monkeypatch.setattr(testing, "read_checkpoint", lambda path: {"state_dict": path.name})

    def transcribe(trainer, module, data):
        done.append(loaded[-1])
        return Transcripts({"test": []}, {"test": []})

    monkeypatch.setattr(testing, "transcribe_splits", transcribe)
    run = SimpleNamespace(
        config=SimpleNamespace(
            trainer=SimpleNamespace(limit_val_batches=val, limit_test_batches=limit),
            data=SimpleNamespace(max_skip_fraction=0.0),
        ),
        data=SimpleNamespace(test_names=names, test_dev=None, skips={"test": []}, manifests={"test": [None]}),
        trainer=SimpleNamespace(current_epoch=0),
        module=module,
    )
    found = testing.transcribe_tested(run, Path("run"))
    assert (loaded, done, run.data.test_dev) == (["best", "averaged"], tested, test_dev)
    assert list(found.predictions) == (["test", "test-averaged"] if tested else [])
