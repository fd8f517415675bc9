"""Where results come from: times, versions and commits."""

import subprocess
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError

from ssl_asr.metrics import provenance
from ssl_asr.metrics.provenance import Clock, git_commit


def test_times_of_a_run(monkeypatch):
    clock = Clock()
    clock.started = datetime(2026, 3, 1, 23, 59, 50, 640_000, tzinfo=UTC)

    class Later(datetime):
        @classmethod
        def now(cls, *_):
            return clock.started + timedelta(minutes=1, seconds=30, milliseconds=460)

    monkeypatch.setattr(provenance, "datetime", Later)
    row = clock.record()
    assert row["started"] == "2026-03-01T23:59:50+00:00"
    assert row["finished"] == "2026-03-02T00:01:21+00:00"
    assert row["seconds"] == 90.5


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    def version(name):
        if name == "hydra-core":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(provenance, "version", version)
    versions = Clock().record()["versions"]
    assert "hydra-core" not in versions
    assert versions["numpy"] == versions["torch"] == "1.0"


def test_commit_of_a_folder_and_whether_it_is_changed(tmp_path):
    assert git_commit(tmp_path / "nothing") is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-m", "first")
    (tmp_path / "new.txt").write_text("untracked files do not count")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert git_commit(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "a.txt").write_text("2")
    assert git_commit(tmp_path) == {"commit": commit, "changed": True}
