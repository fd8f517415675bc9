"""The index of large manifests: equal to checking every line, and never that of other bytes."""

import gc
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ssl_asr.data import line_index, manifest_lines
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.files import without_parents
from ssl_asr.data.line_index import ManifestBytes, index_path
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.workers import prepare_worker
from ssl_asr.errors import ManifestError, UserErrors
from ssl_asr.textfiles import from_json
from tests.fuzzing import fuzz

GOOD = {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello"}


def rows(count):
    return [{**GOOD, "id": f"ü{i}", "duration": i + 0.5, "segments": [{"start": i}]} for i in range(count)]


def write(path, lines, end="\n"):
    path.write_text("".join(json.dumps(line, ensure_ascii=i % 2 == 0) + end for i, line in enumerate(lines)), "utf-8")
    return path


@pytest.fixture
def large(monkeypatch):
    """Manifests are large from 3 lines on, are read from the file, and in chunks that are shorter than a line."""
    monkeypatch.setattr(line_index, "_FEWEST_LINES", 3)
    monkeypatch.setattr(line_index, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(line_index, "_CHUNK_BYTES", 50)


@pytest.fixture
def checks(monkeypatch):
    """Numbers of the lines that are checked."""
    found = []
    check = manifest_lines.check_row
    monkeypatch.setattr(manifest_lines, "check_row", lambda row, *a, **k: found.append(row) or check(row, *a, **k))
    return found


@pytest.mark.parametrize("end", ["\n", "\n\n", " \r\n", "\n\ufeff"])
def test_a_large_manifest_equals_a_small_one(tmp_path, monkeypatch, end):
    path = write(tmp_path / "m.jsonl", rows(20), end)
    small = list(read_manifest(path))
    assert not index_path(path).exists()
    assert [utterance.id for utterance in small] == [f"ü{i}" for i in range(20)]
    monkeypatch.setattr(line_index, "_FEWEST_LINES", 3)
    for in_memory in (1 << 20, 0):
        monkeypatch.setattr(line_index, "_IN_MEMORY_BYTES", in_memory)
        for chunk in (1, 50, 10_000):
            monkeypatch.setattr(line_index, "_CHUNK_BYTES", chunk)
            index_path(path).unlink(missing_ok=True)
            # Checked, and then by its index.
            assert list(read_manifest(path)) == small
            assert list(read_manifest(path)) == small
            assert list(read_manifest(path).select([3, 1])) == [small[3], small[1]]
            assert list(pickle.loads(pickle.dumps(read_manifest(path)))) == small


def test_lines_are_checked_once(tmp_path, large, checks):
    path = write(tmp_path / "m.jsonl", rows(5))
    first = read_manifest(path)
    assert len(checks) == 5
    assert list(read_manifest(path)) == list(first)
    assert read_manifest(path, require_text=False).total_s == first.total_s == 12.5
    assert len(checks) == 5
    # A line more, and a line that is another of the same length.
    write(path, rows(6))
    assert len(read_manifest(path)) == 6
    write(path, [*rows(5), {**rows(6)[5], "text": "jello"}])
    assert read_manifest(path)[5].text == "jello"
    assert len(checks) == 5 + 6 + 6


@pytest.mark.parametrize("place", [0, 100, -1, -40])
def test_a_damaged_index_is_made_again(tmp_path, large, checks, place):
    path = write(tmp_path / "m.jsonl", rows(5))
    whole = list(read_manifest(path))
    data = bytearray(index_path(path).read_bytes())
    data[place] ^= 0xFF
    index_path(path).write_bytes(data)
    assert list(read_manifest(path)) == whole
    index_path(path).write_bytes(data[: len(data) // 2])
    assert list(read_manifest(path)) == whole
    index_path(path).write_bytes(b"")
    assert list(read_manifest(path)) == whole


def test_errors_of_a_large_manifest_are_those_of_a_small_one(tmp_path, monkeypatch):
    wrong = [*rows(4), {**GOOD, "duration": -1}, {"text": "no audio"}, {**GOOD, "id": "ü2"}, {**GOOD, "id": "ü2"}]
    path = write(tmp_path / "m.jsonl", wrong)
    with pytest.raises(UserErrors) as small:
        read_manifest(path)
    monkeypatch.setattr(line_index, "_FEWEST_LINES", 3)
    monkeypatch.setattr(line_index, "_IN_MEMORY_BYTES", 0)
    with pytest.raises(UserErrors) as large:
        read_manifest(path)
    assert str(large.value) == str(small.value)
    assert str(small.value).count("is already used at") == 2
    assert not index_path(path).exists(), "a manifest with errors has no index"


def test_an_index_of_lines_without_text_or_with_repeated_ids_is_not_taken_for_training(tmp_path, large):
    path = write(tmp_path / "m.jsonl", [{**GOOD, "id": str(i), "text": None} for i in range(4)])
    assert len(read_manifest(path, require_text=False)) == 4
    with pytest.raises(UserErrors, match="has no 'text'"):
        read_manifest(path)
    path = write(tmp_path / "n.jsonl", [{**GOOD, "id": str(i // 2)} for i in range(4)])
    assert len(read_manifest(path, unique_ids=False)) == 4
    with pytest.raises(UserErrors, match="already used"):
        read_manifest(path)


def test_a_file_that_changes_while_it_is_in_use_is_an_error(tmp_path, large):
    path = write(tmp_path / "m.jsonl", rows(5))
    opened = read_manifest(path)
    assert opened[4].id == "ü4"
    # A new file of that name leaves the open one as it is.
    write(tmp_path / "new", rows(2)).replace(path)
    assert opened[4].id == "ü4"
    opened = read_manifest(path)
    assert opened[0].id == "ü0"
    with path.open("r+b") as file:
        file.write(b"[")
    os.utime(path, ns=(0, 0))
    with pytest.raises(ManifestError, match="m.jsonl: has changed since it was opened"):
        opened[1]
    with pytest.raises(ManifestError, match="has changed"):
        pickle.loads(pickle.dumps(opened))[1]


def test_a_folder_without_permission_has_no_index_and_no_error(tmp_path, large, monkeypatch):
    path = write(tmp_path / "m.jsonl", rows(5))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(line_index.np, "savez", refused)
    assert len(read_manifest(path)) == 5
    assert [one.name for one in tmp_path.iterdir()] == ["m.jsonl"]


def test_digest_is_the_sha256_of_the_bytes(tmp_path, large):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"abc")
    assert ManifestBytes(path).survey()[0] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


_PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b" ",
    b"\\",
    b'\\"',
    b"\\\\",
    b"1",
    b"-0",
    b"1e999",
    b"null",
    b"9" * 30,
]
_PIECES += [b'"a"', b'"a" :', b'"text": "x"', b'"\\ud800"', b"\xff", b"\xef\xbb\xbf", b"NaN", b"true", b'"a": 1, ']


@fuzz
def test_lines_that_are_read_quickly_are_read_equally(seed):
    draw = random.Random(seed)
    line = json.dumps({draw.choice('abc"\\é'): draw.choice(["x", 'q"', 1, 1.5, None, "\\", "é"]) for _ in range(3)})
    data = bytearray(line.encode())
    for _ in range(draw.randrange(5)):
        place = draw.randrange(len(data) + 1)
        data[place : place + draw.randrange(3)] = draw.choice(_PIECES)
    try:
        expected = from_json(bytes(data), "line", error=ManifestError, remedy="")
    except ManifestError:
        assert manifest_lines.plain_row(bytes(data)) is None
        return
    if isinstance(expected, dict):
        # orjson makes floats of integers with more than 64 bits, which the checks of a line do not tell apart.
        wide = {key for key, value in expected.items() if type(value) is int and abs(value) >= 1 << 63}
        plain = manifest_lines.plain_row(bytes(data))
        assert plain is None or plain == {**expected, **{key: float(expected[key]) for key in wide}}
        assert repr(manifest_lines.loaded(bytes(data))) == repr(expected)


def test_usual_lines_are_read_quickly():
    for text in ("hello", "é", 'a "quote"', "back\\slash"):
        for ascii_only in (False, True):
            line = json.dumps({**GOOD, "text": text, "speaker": "s", "weight": None}, ensure_ascii=ascii_only).encode()
            assert (manifest_lines.plain_row(line) is None) == ("\\" in text)
    assert manifest_lines.plain_row(b'{"a" : 1, "a": 2}') is None
    assert manifest_lines.plain_row(b'{"a": {"b": 1, "b": 2}}') is None


def test_paths_are_joined_as_pathlib_does():
    draw = random.Random(0)
    for _ in range(3000):
        folder = str(Path("".join(draw.choices("ab/.", k=draw.randrange(5)))))
        path = "".join(draw.choices("a/. é", k=draw.randrange(1, 7)))
        expected = without_parents(str(Path(folder) / path))
        assert without_parents(manifest_lines._joined(folder, path)) == expected, (folder, path)


def test_index_holds_every_field(tmp_path, large):
    path = write(tmp_path / "m.jsonl", [{**GOOD, "id": "a"}, {**GOOD, "id": "b", "duration": 2}, {**GOOD, "id": "c"}])
    stored = line_index.stored_index(path, "x")
    assert stored is None
    found = read_manifest(path)
    stored = line_index.stored_index(path, ManifestBytes(path).survey()[0])
    assert stored.numbers_N.tolist() == [1, 2, 3]
    assert stored.durations_N.tolist() == [1.5, 2.0, 1.5]
    assert stored.ids_N.tolist() == [line_index.id_hash(name) for name in "abc"]
    assert stored.starts_N.tolist() == np.cumsum([0, *found.lines.lengths_N + 1])[:-1].tolist()
    assert stored.has_texts


class _Weighs:
    """A tokenizer whose tokens are the KiB of memory that only the process of a worker has.

    Garbage is collected after the first one: it would copy the memory of the objects that the worker inherits.
    """

    weighed = False

    def encode(self, utterance):
        if not utterance.id.endswith("000"):
            return [os.getpid(), 0]
        if self.weighed:
            gc.collect()
        self.weighed = True
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        return [os.getpid(), int(dict(line.split(":") for line in lines)["Private_Dirty"].split()[0])]


class _AllStates:
    """A store that has the states of every utterance, so that no audio is read."""

    def __contains__(self, name):
        return True


@pytest.mark.parametrize("indexed", [True, False])
def test_workers_do_not_grow_over_an_epoch(tmp_path, monkeypatch, indexed):
    count = 60_000
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(f'{{"audio_filepath": "a.wav", "duration": 1.5, "text": "hello", "id": "{i}"}}\n' for i in range(count))
    )
    if indexed:
        monkeypatch.setattr(line_index, "_FEWEST_LINES", 3)
        monkeypatch.setattr(line_index, "_IN_MEMORY_BYTES", 0)
    manifest = read_manifest(path)
    assert index_path(path).exists() == indexed
    dataset = SpeechDataset(manifest, tokenizer=_Weighs(), state_store=_AllStates())
    order = np.random.default_rng(0).permutation(count).tolist()
    batches = [order[start : start + 500] for start in range(0, count, 500)]
    seen: dict[int, list[int]] = {}
    inherited = [[number] for number in range(500_000)]
    options = {"num_workers": 2, "collate_fn": collate, "worker_init_fn": prepare_worker}
    for batch in DataLoader(dataset, batch_sampler=batches, **options):
        for pid, kib in batch.tokens_BU.tolist():
            seen.setdefault(pid, []).extend([kib] if kib else [])
    assert len(seen) == 2
    assert len(inherited) == 500_000
    assert sum(len(sizes) for sizes in seen.values()) == count // 1000 - 1
    for sizes in seen.values():
        assert (sizes[-1] - sizes[0]) / 1024 < 20, sizes


@fuzz
def test_lines_that_are_checked_together_are_valid(seed):
    """With the values, the escapes and the repeated keys that lines of one shape may differ in."""
    draw = random.Random(seed)
    values = {
        "audio_filepath": ["a.wav", "", ".", "a\0", "é" * 10, "x" * 5000, None, 1],
        "duration": [1, 1.5, 0, -1.0, True, "1", None, 2_000_000_000, 10**30],
        "text": ["x", "", "é", 'a "b"', "back\\slash", None, 3, ["x"]],
        "id": ["a", "", None, 1],
        "lang": ["en", None, 2],
        "offset": [0, 1.5, -1, None, True],
        "channel": [0, 1.0, 70_000, None],
        "age": ["1", 1, None, {"a": 1}, [1]],
    }
    keys = ["audio_filepath", "text", *draw.sample(["duration", "id", "lang", "offset", "channel", "age"], 3)]
    lines = []
    for _ in range(3):
        row = {key: values[key][0 if draw.random() < 0.9 else draw.randrange(len(values[key]))] for key in keys}
        line = json.dumps(row, ensure_ascii=draw.random() < 0.5).encode()
        lines.append(line.replace(b"{", b'{"text": "y", ', 1) if draw.random() < 0.05 else line)
    if draw.random() < 0.1:
        lines[1] = draw.choice([b"{", b"[1]", b'"text"', b"\xff"])
    for require_text in (True, False):
        for line, row in zip(lines, manifest_lines.plain_rows(lines, require_text=require_text), strict=True):
            expected, errors = manifest_lines.parsed(line, "line", require_text=require_text)
            assert row is None or (not errors and row == expected)
