"""Inputs become a list of recordings, each once, and everything else is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssl_asr.data.folders import search
from ssl_asr.data.identity import identity
from ssl_asr.data.inputs import expand, gather
from ssl_asr.errors import ConfigError, ManifestError, UserErrors


def audio(path, seconds=0.25):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(int(seconds * 16000)), 16000, format="WAV")
    return path


def manifest(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"duration": 0.25, **row}) + "\n" for row in rows))
    return path


def paths(given):
    return [utterance.audio_filepath for utterance in given.manifest]


def reasons(given):
    return sorted((os.path.basename(skip.id), skip.reason) for skip in given.skips)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_equal_ids_of_two_manifests_are_two_recordings(here):
    first = manifest(here / "m1" / "test.jsonl", {"audio_filepath": "wav/1.wav"})
    second = manifest(here / "m2" / "test.jsonl", {"audio_filepath": "wav/1.wav"})
    given = gather([first.relative_to(here), second.relative_to(here)])
    assert [utterance.id for utterance in given.manifest] == ["wav/1", "wav/1"]
    assert paths(given) == ["m1/wav/1.wav", "m2/wav/1.wav"]
    assert [utterance.where for utterance in given.manifest] == ["m1/test.jsonl:1", "m2/test.jsonl:1"]
    assert not given.skips


DIFFERENT = {
    "channel": [{"channel": 0}, {"channel": 1}],
    "mixed and channel": [{}, {"channel": 0}],
    "offset": [{"offset": 0.0}, {"offset": 0.1}],
    "duration": [{}, {"duration": 0.2}],
    "language": [{"lang": "en"}, {"lang": "de"}],
    "task": [{"task": "transcribe"}, {"task": "translate"}],
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_rows_of_one_file_that_differ_are_all_kept_without_ids(here, case):
    rows = [{"audio_filepath": "a.wav", **row} for row in DIFFERENT[case]]
    given = gather([manifest(here / "m.jsonl", *rows)])
    assert len(given.manifest) == 2
    assert len({identity(utterance) for utterance in given.manifest}) == 2


def test_one_stem_with_two_suffixes_is_two_recordings(here):
    given = gather([manifest(here / "m.jsonl", {"audio_filepath": "x.wav"}, {"audio_filepath": "x.flac"})])
    assert len(given.manifest) == 2


def test_one_recording_by_several_roads_is_taken_once(here):
    audio(here / "d" / "a.wav")
    (here / "link").symlink_to("d")
    roads = ["d/a.wav", "./d/a.wav", "d/../d/a.wav", str(here / "d" / "a.wav"), "link/a.wav", "d", "d/*.wav"]
    given = gather(expand(roads, []))
    assert paths(given) == ["d/a.wav"]
    assert [skip.reason for skip in given.skips] == ["duplicate"] * (len(roads) - 1)
    assert all("the same recording as d/a.wav" in skip.detail for skip in given.skips)
    assert given.count == len(roads)


def test_one_path_object_twice_is_taken_once(here):
    path = audio(here / "a.wav")
    assert gather([path, path]).count == 2
    assert len(gather([path, path]).manifest) == 1


def test_manifest_given_twice_and_its_lines_repeated_are_taken_once(here):
    rows = [{"audio_filepath": "a.wav", "id": "one"}, {"audio_filepath": "./a.wav", "offset": 0, "id": "two"}]
    path = manifest(here / "m.jsonl", *rows)
    given = gather([path, path])
    assert [utterance.id for utterance in given.manifest] == ["one"]
    assert [skip.id for skip in given.skips] == ["two", "one", "two"]
    assert given.skips[0].where == f"{path}:2"


def test_link_to_a_file_is_a_recording_with_its_own_name(here):
    audio(here / "a.wav")
    (here / "b.wav").symlink_to("a.wav")
    assert len(gather([here / "a.wav", here / "b.wav"]).manifest) == 2


def test_paths_stay_as_they_are_typed(here):
    audio(here / "d" / "a.wav")
    path = manifest(here / "m" / "x.jsonl", {"audio_filepath": "../d/b.wav"}, {"audio_filepath": "/abs/c.wav"})
    given = gather(expand(["d", str(path.relative_to(here))], []))
    assert paths(given) == ["d/a.wav", "d/b.wav", "/abs/c.wav"]


def test_folder_names_what_it_passes_over(here):
    d = here / "d"
    for name in ("a.wav", "B.WAV", "sub.wav/c.wav", ".hidden.wav", ".trash/d.wav", "whole.bin", "late.wav.part"):
        audio(d / name)
    (d / "zero.flac").touch()
    (d / "page.mp3").write_text("<html>")
    (d / "phone.sph").write_bytes(b"NIST")
    (d / "samples.raw").write_bytes(bytes(64))
    (d / "broken.wav").symlink_to("nowhere.wav")
    (d / "circle.wav").symlink_to("circle.wav")
    (d / "loop").symlink_to("..")
    os.mkfifo(d / "pipe.wav")
    manifest(d / "list.jsonl", {"audio_filepath": "a.wav"})
    (d / "old.jsonl").write_text('{"id": "a", "audio_filepath": "a.wav", "duration": 1.0, "text": "", "score": 0}\n')
    for name in ("a.txt", "b.txt", "a.srt", "README"):
        (d / name).write_text("text")
    given = gather([d.relative_to(here)])
    assert paths(given)[:3] == ["d/B.WAV", "d/a.wav", "d/sub.wav/c.wav"]
    assert set(reasons(given)) == {
        (".hidden.wav", "hidden"),
        ("d.wav", "hidden"),
        ("whole.bin", "suffix"),
        ("late.wav.part", "suffix"),
        ("zero.flac", "empty_file"),
        ("page.mp3", "not_audio"),
        ("phone.sph", "not_audio"),
        ("samples.raw", "no_header"),
        ("broken.wav", "missing_file"),
        ("circle.wav", "missing_file"),
        ("pipe.wav", "not_a_file"),
    } | {(name, reason) for name, reason in reasons(given) if reason == "duplicate"}
    notes = "\n".join(given.notes)
    for part in ("d/list.jsonl is a manifest", "2 .txt", "1 .srt", "1 without suffix", "1 .jsonl"):
        assert part in notes
    assert given.sources == [d.relative_to(here) / "list.jsonl"]


def test_link_to_a_folder_above_ends(here):
    audio(here / "d" / "e" / "a.wav")
    (here / "d" / "e" / "up").symlink_to("..")
    (here / "d" / "self").symlink_to(".")
    found = search(here / "d")
    assert [path.name for path in found.audio] == ["a.wav"]
    assert sum("symbolic link to a folder above" in note for note in found.notes) == 2


def test_folder_without_permission_is_named(here, monkeypatch):
    audio(here / "d" / "a.wav")
    audio(here / "d" / "closed" / "b.wav")
    plain = type(here).iterdir

    def refuses(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(type(here), "iterdir", refuses)
    given = gather([here / "d"])
    assert len(given.manifest) == 1
    assert reasons(given) == [("closed", "unreadable")]


def test_file_without_permission_is_named(here, monkeypatch):
    audio(here / "a.wav")
    audio(here / "b.wav")
    plain = type(here).open

    def refuses(path, *rest, **more):
        if path.name == "b.wav":
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest, **more)

    monkeypatch.setattr(type(here), "open", refuses)
    given = gather([here])
    assert reasons(given) == [("b.wav", "unreadable")]


def test_name_that_is_not_unicode_is_named(here):
    name = os.fsdecode(b"caf\xe9.wav")
    audio(here / "good.wav")
    try:
        (here / name).write_bytes((here / "good.wav").read_bytes())
    except OSError:
        pytest.skip("this file system has only Unicode names")
    (here / "m.jsonl").write_text(r'{"audio_filepath": "\udce9.wav", "duration": 1.0}' + "\n")
    given = gather([here, here / "m.jsonl"])
    assert paths(given) == [str(here / "good.wav")]
    assert [skip.reason for skip in given.skips] == ["name", "name"]
    assert all(skip.id.encode() for skip in given.skips)


def test_wrong_inputs_are_refused_together(here):
    (here / "empty").mkdir()
    os.mkfifo(here / "pipe")
    with pytest.raises(UserErrors) as caught:
        gather(expand(["nowhere.wav", "empty", "pipe", "x" * 300], []))
    text = str(caught.value)
    for part in (
        "nowhere.wav: no such file",
        "empty: has no audio files",
        "pipe: is not a regular file",
        "xxx: no such",
    ):
        assert part in text
    with pytest.raises(ConfigError, match="names no recording"):
        gather(expand(["-"], ["\n"]))
    (here / "empty" / "a.txt").write_text("")
    with pytest.raises(ManifestError, match="has no audio files.*1 .txt"):
        gather([here / "empty"])


def test_manifest_may_end_in_json_and_transcripts_in_json_are_not_manifests(here):
    (here / "m.json").write_text('{"audio_filepath": "a.wav", "duration": 1.0}\n')
    (here / "a.json").write_text('{\n "text": "hello",\n "segments": []\n}\n')
    given = gather([here / "m.json", here / "a.json"])
    assert paths(given) == [str(here / "a.wav")]
    assert reasons(given) == [("a.json", "not_audio")]


def test_two_stars_in_a_name_are_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("o/sub/x", "o/ax"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("o/a.wav", "o/ax/b.wav", "o/sub/c.wav", "foo"):
        (tmp_path / name).touch()
    assert [path.as_posix() for path in expand(["o/**.wav"], [])] == ["o/a.wav"]
    assert [path.as_posix() for path in expand(["**foo"], [])] == ["foo"]
    assert [path.as_posix() for path in expand(["o/**x/*.wav"], [])] == ["o/ax/b.wav"]
    assert [path.as_posix() for path in expand([f"{tmp_path}/o/***.wav"], [])] == [f"{tmp_path}/o/a.wav"]
    assert len(expand(["o/**/*.wav"], [])) == 3
    with pytest.raises(ConfigError, match=r"nothing matches \*\*bar"):
        expand(["**bar"], [])
    with pytest.raises(ConfigError, match="cannot be searched: File name too long|nothing matches"):
        expand([f"{'a' * 300}/*.wav"], [])


def test_a_file_in_a_folder_that_may_not_be_read_is_not_missing(monkeypatch):
    def refuses(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuses)
    with pytest.raises(ManifestError, match=r"closed/a.wav: no permission to look into its folder"):
        gather([Path("closed/a.wav")])
