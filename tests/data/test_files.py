"""Audio in tars and behind addresses: what is read, what is refused, and which recording it is."""

import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data import remote
from ssl_asr.data.audio import audio_duration_s, check_header, read_waveform
from ssl_asr.data.confinement import check_confined
from ssl_asr.data.dataset import SpeechDataset
from ssl_asr.data.doctor.leakage import leakage
from ssl_asr.data.files import FileKey, Location, joined, members, opened, placed, without_parents
from ssl_asr.data.identity import content_digest, file_key, recording_key
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.remote import MediaError
from ssl_asr.data.state_store import audio_key
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserErrors
from ssl_asr.inference.names import output_names
from ssl_asr.types import Utterance
from tests.data.shards import corpus, served, sharded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``files`` and ``shards`` with the same corpus."""
    folder = tmp_path_factory.mktemp("files")
    manifest = corpus(folder / "files")
    sharded(manifest, folder / "shards")
    return folder


@pytest.fixture
def tar(tmp_path):
    """A tar with ``a.wav``, ``dir/a.wav`` and a link, and the samples of both files."""
    samples = {}
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for i, name in enumerate(("a.wav", "dir/a.wav", f"{'long' * 40}.wav", "größe.wav")):
            samples[name] = np.random.default_rng(i).integers(-999, 999, 8000).astype(np.int16)
            stream = io.BytesIO()
            soundfile.write(stream, samples[name], 16_000, format="WAV")
            info = tarfile.TarInfo(name)
            info.size = len(stream.getvalue())
            made.addfile(info, io.BytesIO(stream.getvalue()))
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    return tmp_path / "x.tar", samples


def utterance(path, duration=0.5, name="utt"):
    return Utterance(id=name, audio_filepath=str(path), duration=duration, where="m.jsonl:3")


def refused(path):
    with pytest.raises(AudioError) as caught:
        read_waveform(utterance(path))
    again = SpeechDataset([utterance(path)], tokenizer=None, skip_bad_audio=True)[0]
    assert (again.id, again.where, again.reason) == ("utt", "m.jsonl:3", caught.value.reason)
    assert "utt (m.jsonl:3)" in str(caught.value)
    return caught.value.reason, str(caught.value)


# Places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.wav", ("a/b.wav", None, None, None)),
        ("a/x.tar::b/c.wav", ("a/x.tar", "b/c.wav", None, None)),
        ("a/x.tar::c.wav@512+7", ("a/x.tar", "c.wav", 512, 7)),
        ("a/x.tar::c@1+2.wav", ("a/x.tar", "c@1+2.wav", None, None)),
        ("s3://b/x.tar::c@512+7", ("s3://b/x.tar", "c", 512, 7)),
        ("a::b.wav", ("a::b.wav", None, None, None)),
        ("a/x.tar::", ("a/x.tar::", None, None, None)),
        ("x.tar::y.tar::c.wav", ("x.tar", "y.tar::c.wav", None, None)),
    ],
)
def test_paths_name_files_members_and_bytes(path, expected):
    location = Location.of(path)
    assert (location.container, location.member, location.start, location.size) == expected
    assert str(location) == path


def test_parents_inside_a_path_are_left_out_unless_a_link_leads_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "data")
    paths = ["real/../a.wav", "real/../b/c.wav", "../real/../a.wav", "link/../a.wav", "real/a..b.wav", "a.wav"]
    expected = ["a.wav", "b/c.wav", "../a.wav", "link/../a.wav", "real/a..b.wav", "a.wav"]
    assert [without_parents(path) for path in paths] == expected
    assert without_parents(f"{tmp_path}/real/../a.wav") == f"{tmp_path}/a.wav"


def test_relative_paths_start_at_the_manifest():
    assert joined("d", "x.tar::./a//b.wav@1+2") == "d/x.tar::./a//b.wav@1+2"
    assert joined("d", "../x.tar::a.wav") == "x.tar::a.wav"
    assert joined("d", "/x.tar::a.wav") == "/x.tar::a.wav"
    assert joined("d", "https://h/x//y.tar::a") == "https://h/x//y.tar::a"
    assert joined("d", "../../x.tar::a.wav") == "../x.tar::a.wav"
    assert placed("/d/x.tar::a/../b@1+2", Path("/d/m"), within=Path("/d")) == "../x.tar::a/../b@1+2"
    assert placed("/e/x.tar::a", Path("/d/m"), within=Path("/d")) == "/e/x.tar::a"
    assert placed("s3://e/x.tar::a", Path("/d"), within=Path("/d")) == "s3://e/x.tar::a"


def test_members_are_read_by_name_and_by_bytes(tar):
    path, samples = tar
    held = members(str(path))
    assert held.keys() == samples.keys()
    for name, expected in samples.items():
        for place in (f"{path}::{name}", str(Location(str(path), name, *held[name]))):
            waveform_T = read_waveform(utterance(place))
            assert np.array_equal(waveform_T.numpy(), expected.astype(np.float32) / 2**15)
            assert audio_duration_s(place) == 0.5
    late = read_waveform(Utterance(id="u", audio_filepath=f"{path}::a.wav", duration=0.1, offset=0.25))
    assert np.array_equal(late.numpy(), samples["a.wav"][4000:5600].astype(np.float32) / 2**15)


# Faults ------------------------------------------------------------------------------------------------------------


def test_faults_of_shards_name_shard_member_and_utterance(tar, tmp_path):
    path, _ = tar
    (start, size), place = members(str(path))["dir/a.wav"], f"{path}::dir/a.wav"
    exact = f"{place}@{start}+{size}"
    assert refused(f"{path}::b.wav")[0] == "missing_member"
    assert f"{path}::b.wav: the shard has no member 'b.wav'" in refused(f"{path}::b.wav")[1]
    assert refused(f"{path}::link.wav")[0] == "missing_member"
    assert refused(f"{tmp_path}/no.tar::a.wav@512+9") == (
        "missing_file",
        f"utt (m.jsonl:3): {tmp_path}/no.tar::a.wav@512+9: no such shard. Check audio_filepath.",
    )
    assert refused(f"{place}@{start - 1}+{size}")[0] == "changed_shard"
    assert refused(f"{place}@7+{size}")[0] == "changed_shard"
    assert refused(f"{path}::other.wav@{start}+{size}")[0] == "changed_shard"
    assert f"has 'dir/a.wav' of {size:,} bytes there" in refused(f"{path}::dir/a.wav@{start}+{size - 1}")[1]
    (tmp_path / "not.tar").write_bytes(b"not a tar" * 100)
    assert refused(f"{tmp_path}/not.tar::a.wav")[0] == "bad_shard"
    for name in ("x.tar.gz", "x.tgz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
        assert refused(f"{tmp_path}/{name}::a.wav")[0] == "compressed_shard"
    path.write_bytes(path.read_bytes()[: start + size - 1])
    for one in (place, exact):
        reason, message = refused(one)
        assert reason == "truncated_shard"
        assert f"{one}: the shard ends at byte {start + size - 1:,}, before the end of this member" in message


def test_an_empty_member_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        made.addfile(tarfile.TarInfo("a.wav"), io.BytesIO())
    assert refused(f"{tmp_path}/x.tar::a.wav")[0] == "empty_file"


def test_shards_that_are_replaced_are_read_anew(tar, tmp_path):
    path, samples = tar
    place = f"{path}::a.wav"
    digest = content_digest(place)
    with tarfile.open(path, "w") as made:
        stream = io.BytesIO()
        soundfile.write(stream, samples["dir/a.wav"], 16_000, format="WAV")
        info = tarfile.TarInfo("a.wav")
        info.size = len(stream.getvalue())
        made.addfile(info, io.BytesIO(stream.getvalue()))
    os.utime(path, ns=(1, 1))
    assert content_digest(place) != digest
    assert np.array_equal(read_waveform(utterance(place)).numpy(), samples["dir/a.wav"].astype(np.float32) / 2**15)


# Identity and confinement --------------------------------------------------------------------------------------------


def test_equal_bytes_have_equal_digests(folder):
    files, shards = (list(read_manifest(folder / name / "train.jsonl")) for name in ("files", "shards"))
    for one, other in zip(files[:5], shards[:5], strict=True):
        assert content_digest(one.audio_filepath) == content_digest(other.audio_filepath) is not None
    assert content_digest(shards[0].audio_filepath) != content_digest(shards[1].audio_filepath)
    assert json.loads(audio_key(shards[0]))[0] == "a.wav.wav"


def test_audio_in_a_shard_is_found_in_training(folder):
    files, shards = (read_manifest(folder / name / "train.jsonl") for name in ("files", "shards"))
    found = leakage({"train": files, "dev": shards.select([0, 4])}, ["train"], get_normalizer("none", key="n"))
    leaked = {one.id for one in found if one.finding == "leaked_audio"}
    assert leaked == {"whole/a.wav", "whole/e.m4a"}


def test_ways_to_write_a_shard_are_one_recording(folder, monkeypatch):
    monkeypatch.chdir(folder)
    one = utterance("shards/train/recording.000000.tar::a@1+2")
    other = utterance(f"{folder}/files/../shards/train/recording.000000.tar::a@1+2")
    assert recording_key(one) == recording_key(other)
    assert file_key("s3://b//x.tar::a") == "s3://b//x.tar::a"


def test_outputs_are_named_by_the_member():
    rows = [utterance("d/x.000.tar::a.flac@1+2"), utterance("d/x.000.tar::b.flac@3+4"), utterance("e/x.tar::b.wav")]
    rows += [utterance("s3://bucket/y.tar::c/d.flac"), utterance("https://h/e.flac")]
    assert list(output_names(rows).values()) == ["a", "x.000_b", "x_b", "d", "e"]


def test_shards_are_confined(tar, tmp_path):
    path, _ = tar
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.tar").symlink_to(path)
    os.link(path, tmp_path / "root" / "in.tar")
    check_confined([utterance(tmp_path / "root" / "in.tar::../../a.wav@1+2")], tmp_path / "root")
    outside = [f"{path}::a.wav", f"{tmp_path}/root/../x.tar::a.wav", f"{tmp_path}/root/link.tar::a.wav"]
    for place in [*outside, "https://host/a.wav", "memory://x.tar::a.wav@1+2"]:
        with pytest.raises((ManifestError, UserErrors), match="lies outside root="):
            check_confined([utterance(place)], tmp_path / "root")


# Addresses -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote_utterances(folder):
    """The corpus in files, and the same in the shards of a server. ``moved(address)`` gives it for an address."""
    files = list(read_manifest(folder / "files" / "train.jsonl"))
    shards = list(read_manifest(folder / "shards" / "train.jsonl"))

    def moved(address):
        return [
            Utterance(one.id, one.audio_filepath.replace(str(folder), address), one.duration, where=one.where)
            for one in shards
        ]

    return files, moved


def _read(one):
    return read_waveform(one)


def test_shards_of_a_server_are_read_by_their_bytes(folder, remote_utterances):
    files, moved = remote_utterances
    with served(folder) as (address, requests):
        for one, other in zip(files, moved(address), strict=True):
            assert torch.equal(read_waveform(other, signals=[]), read_waveform(one, signals=[]))
            check_header(other)
        assert len(requests) == len(files), "one request for each utterance"
        assert all(command == "GET" and span for command, _, span in requests)
        whole = utterance(f"{address}/files/a.wav", 1.25)
        assert torch.equal(read_waveform(whole), read_waveform(files[0]))
        named = utterance(moved(address)[0].audio_filepath.rpartition("@")[0], 1.25)
        assert torch.equal(read_waveform(named), read_waveform(files[0]))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_download_each_shard_once(folder, remote_utterances, workers, tmp_path, monkeypatch):
    files, moved = remote_utterances
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    with served(folder, sends_parts=False) as (address, requests):
        dataset = SpeechDataset([*moved(address), *reversed(moved(address))], tokenizer=None)
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
        for _ in range(2):
            found = list(loader)
            for one, example in zip([*files, *reversed(files)], found, strict=True):
                assert torch.equal(example.waveform_T, read_waveform(one))
        gets = [path for command, path, _ in requests if command == "GET"]
        assert sorted(gets) == sorted({one.audio_filepath.partition("::")[0][len(address) :] for one in moved(address)})
    kept = sorted(path.suffix for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock"))
    assert kept == [".tar"] * 5


def test_forked_workers_read_by_bytes_too(folder, remote_utterances):
    files, moved = remote_utterances
    with served(folder) as (address, _):
        read_waveform(moved(address)[0])  # the parent has a connection
        loader = torch.utils.data.DataLoader(
            SpeechDataset(moved(address), tokenizer=None), batch_size=None, num_workers=2
        )
        for one, example in zip(files, loader, strict=True):
            assert torch.equal(example.waveform_T, read_waveform(one))


def test_memory_file_systems_are_read(tar):
    import fsspec

    path, _ = tar
    with fsspec.open("memory://bucket/x.tar", "wb") as file:
        file.write(path.read_bytes())
    start, size = members(str(path))["dir/a.wav"]
    for place in ("memory://bucket/x.tar::dir/a.wav", f"memory://bucket/x.tar::dir/a.wav@{start}+{size}"):
        assert len(read_waveform(utterance(place))) == 8000
        assert content_digest(place) == content_digest(f"{path}::dir/a.wav")
    assert refused(f"memory://bucket/x.tar::a.wav@{start}+{size}")[0] == "changed_shard"
    assert refused("memory://bucket/y.tar::a.wav@512+9") == (
        "missing_file",
        "utt (m.jsonl:3): memory://bucket/y.tar::a.wav@512+9: no such file at memory://bucket/y.tar. "
        "Check audio_filepath.",
    )
    with fsspec.open("memory://bucket/x.tar", "wb") as file:
        file.write(path.read_bytes()[: start + size - 1])
    remote._kept.bytes.clear()
    assert refused(f"memory://bucket/x.tar::dir/a.wav@{start}+{size}")[0] == "truncated_shard"


def test_faults_of_servers_are_named(folder, remote_utterances, monkeypatch, tmp_path):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    _, moved = remote_utterances
    with served(folder) as (address, _):
        [one, two, *_] = moved(address)
        assert refused(f"{address}/no.tar::a.wav@512+9")[0] == "missing_file"
        assert refused(f"{address}/no.wav")[0] == "missing_file"
        assert not waits
        read_waveform(one)
    remote._kept.bytes.clear()
    reason, message = refused(two.audio_filepath)
    assert reason == "unreachable"
    assert f"{two.audio_filepath}: {address}/shards/train/recording.000000.tar cannot be read" in message
    assert waits == [1.0, 4.0] * 2, "a store that has answered is asked again"
    waits.clear()
    assert refused("http://127.0.0.1:9/x.tar::a.wav@512+9")[0] == "unreachable"
    assert not waits
    assert refused("ftp://host/a.wav")[0] == "protocol"
    assert refused("local:///etc/passwd")[0] == "protocol"
    with served(folder, sends_parts=False) as (address, _):
        reason, message = refused(moved(address)[2].audio_filepath)
        assert reason == "no_ranges"
        assert "Set SSL_ASR_SHARD_CACHE=FOLDER" in message
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(remote.CACHE, str(tmp_path / "file" / "cache"))
        assert refused(moved(address)[0].audio_filepath)[0] == "cache"


def test_a_missing_package_is_named_once(monkeypatch):
    def missing(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"s3://: cannot be read: Install s3fs to access S3. Install the package"):
        SpeechDataset([utterance("s3://b/x.tar::a@512+1")], tokenizer=None, skip_bad_audio=True)[0]


# Concurrent readers --------------------------------------------------------------------------------------------------


def test_many_threads_read_one_shard(folder):
    shards = list(read_manifest(folder / "shards" / "train.jsonl"))
    expected = [read_waveform(one) for one in shards]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(read_waveform, shards), expected))


def test_a_part_is_a_file(tar):
    path, _ = tar
    start, size = members(str(path))["a.wav"]
    data = path.read_bytes()[start : start + size]
    with opened(f"{path}::a.wav") as file:
        assert file.read() == data
        assert (file.read(), file.seek(-5, os.SEEK_END), file.read()) == (b"", size - 5, data[-5:])
        assert (file.seek(3), file.read(4), file.tell()) == (3, data[3:7], 7)
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        assert file.seek(size + 9) == size + 9
        assert file.read(1) == b""
    with pytest.raises(MediaError):
        FileKey.of(f"{path}::none")
