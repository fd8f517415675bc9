"""What ``ssl-asr prepare`` refuses, and that nothing is replaced or half written."""

import pytest

from ssl_asr.config.tools import PrepareConfig
from ssl_asr.errors import ConfigError, ManifestError
from tests.data.sources import clip, lines, run, text


@pytest.fixture
def folder(tmp_path):
    """Four recordings of four speakers, of which one has no transcript."""
    for i, name in enumerate(("ann", "bob", "cid", "dee")):
        clip(tmp_path / "in" / name / "a.wav", 1 + i)
        if name != "dee":
            text(tmp_path / "in" / name / "a.txt", f"words of {name}")
    return tmp_path / "in"


def test_too_many_skips_are_an_error_and_no_manifest_is_written(folder, tmp_path, capsys):
    with pytest.raises(ManifestError, match=r"1 of 4 utterances are left out: dee/a: no_transcript"):
        run(folder, tmp_path / "out", max_skip_fraction=0.2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]
    assert "recordings: 4 in, 3 out, 1 skipped (no_transcript 1)" in capsys.readouterr().err
    assert len(run(folder, tmp_path / "out", max_skip_fraction=0.25)["all"]) == 3


def test_existing_manifests_are_not_replaced(folder, tmp_path):
    run(folder, tmp_path / "out")
    before = (tmp_path / "out" / "all.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"output_dir: .*all\.jsonl is already there"):
        run(folder, tmp_path / "out", max_skip_fraction=0.0)
    with pytest.raises(ConfigError, match=r"output_dir: .*train\.jsonl is already there"):
        run(folder, text(tmp_path / "two" / "train.jsonl", "mine").parent, splits={"train": 0.5, "dev": 0.5})
    assert (tmp_path / "two" / "train.jsonl").read_text() == "mine"
    assert (tmp_path / "out" / "all.jsonl").read_bytes() == before
    assert len(lines(tmp_path / "out" / "skipped.jsonl")) == 1


def test_an_input_is_not_replaced(folder, tmp_path):
    run(folder, tmp_path / "out")
    (tmp_path / "out" / "all.jsonl").rename(tmp_path / "out" / "skipped.jsonl")
    with pytest.raises(ConfigError, match=r"skipped\.jsonl is an input and would be overwritten"):
        run(tmp_path / "out" / "skipped.jsonl", tmp_path / "out")


def test_nothing_is_half_written_if_a_writer_fails(folder, tmp_path, monkeypatch):
    from ssl_asr.data import preparation

    def fail(target, split, rows):
        (target.folder / f"{split}.jsonl").write_text("half")
        raise OSError(28, "No space left on device", str(target.folder))

    monkeypatch.setitem(dict(preparation.WRITERS), "manifest", (fail, ("{}.jsonl",)))
    monkeypatch.setattr(preparation, "WRITERS", {"manifest": (fail, ("{}.jsonl",))})
    with pytest.raises(OSError, match="No space left"):
        run(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]


def test_several_inputs_become_one_corpus(folder, tmp_path):
    clip(tmp_path / "more" / "x.wav")
    table = text(tmp_path / "more" / "dev.csv", "audio,text\nx.wav,more\n")
    found = run([folder, table], tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"all": 3, "dev": 1, "skipped": 1}


def test_speakers_are_split_by_folder(folder, tmp_path):
    fractions = {"train": 0.5, "dev": 0.25, "test": 0.25}
    found = run(folder, tmp_path / "out", columns={"speaker": "folder"}, splits=fractions)
    speakers = {split: {row["speaker"] for row in found[split]} for split in fractions}
    assert sorted(name for names in speakers.values() for name in names) == ["ann", "bob", "cid"]


def test_splits_with_names_that_are_no_files_are_refused(tmp_path):
    clip(tmp_path / "a.wav")
    for name in ("../x", "a/b", "..", ".hidden", "a\0b"):
        table = text(tmp_path / "t.csv", f'audio,text,split\na.wav,hi,"{name}"\n')
        with pytest.raises(ManifestError):
            run(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": {"train": 0.8, "dev": 0.1}}, "splits: is 0.9 in sum, expected 1"),
        ({"splits": {"train": 1.2, "dev": -0.2}}, r"splits\.dev: is -0.2, expected a fraction above 0"),
        ({"digest": "sha256:12"}, "digest: is 'sha256:12', expected sha256:… or md5:…"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    [error] = PrepareConfig(input=["a"], output_dir=str(tmp_path), **settings).conflicts()
    with pytest.raises(ConfigError, match=message):
        raise error


def test_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    [error] = PrepareConfig(input=["a"], output_dir=str(tmp_path)).conflicts()
    assert "is the folder of a training run" in str(error)


def test_the_command_line(folder, tmp_path, run_command):
    done = run_command(
        "prepare",
        folder,
        "-o",
        tmp_path / "out",
        "columns.speaker=folder",
        "splits={train: 0.5, dev: 0.5}",
        "max_skip_fraction=1",
    )
    assert done.returncode == 0, done.stderr
    assert "kind=folder" in done.stderr
    assert "Corpus" in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "dev")]
    done = run_command("prepare", folder, "-o", tmp_path / "two", "columns.txt=x", "kind=kaldy", "splits=[1]")
    assert done.returncode == 2
    assert "did you mean 'text'?" in done.stderr.lower()
    assert "kind: is 'kaldy'" in done.stderr
    assert "splits: is [1], expected {name: fraction, …}" in done.stderr
    assert "Traceback" not in done.stderr
