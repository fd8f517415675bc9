"""The state store: states are read back, survive a crash, and are never used for changed audio."""

import pytest
import torch

from ssl_asr.data import state_store
from ssl_asr.data.state_store import StateStore, audio_key, state_digest
from ssl_asr.errors import CheckpointError
from ssl_asr.types import Utterance

ORIGIN = {"weights": "w", "layers": [2]}


def utterance(number, **changed):
    return Utterance(**{"id": f"u/{number} é", "audio_filepath": f"{number}.wav", "duration": 1.0 + number, **changed})


def states(number):
    return torch.randn(2, 5 + number, 3, generator=torch.Generator().manual_seed(number))


def fill(store, numbers):
    for number in numbers:
        store.put(utterance(number), states(number), 4 + number)


def test_states_are_readable_before_and_after_they_are_written(tmp_path):
    store = StateStore(tmp_path / "new", origin=ORIGIN, shard_bytes=300)
    fill(store, range(7))
    for seen in (store, StateStore(tmp_path / "new", origin=ORIGIN)):
        for number in seen_numbers(seen):
            found, frames = seen[utterance(number).id]
            assert torch.equal(found, states(number))
            assert frames == 4 + number
    assert seen_numbers(store) == list(range(7))
    assert len(list((tmp_path / "new").glob("states-0-*.safetensors"))) > 1
    store.flush()
    assert seen_numbers(StateStore(tmp_path / "new")) == list(range(7))


def seen_numbers(store):
    return sorted(int(key.removeprefix("u/").split()[0]) for key in store)


def test_slices_of_one_batch_are_stored_separately(tmp_path):
    batch = torch.randn(3, 1, 9, 4)
    store = StateStore(tmp_path, origin=ORIGIN)
    for number in range(3):
        store.put(utterance(number), batch[number, :, : 4 + number], 4)
    expected = batch.clone()
    batch.zero_()
    store.flush()
    for number in range(3):
        assert torch.equal(store[utterance(number).id][0], expected[number, :, : 4 + number])
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1500


def test_crash_loses_only_states_that_were_not_written(tmp_path):
    store = StateStore(tmp_path, origin=ORIGIN)
    fill(store, [0, 1])
    store.flush()
    fill(store, [2])
    # The crash came after the shard and half of its index line.
    [index] = tmp_path.glob("index-0-*.jsonl")
    index.with_name(index.stem.replace("index", "states") + "-00001.safetensors").write_bytes(b"half")
    with index.open("a") as file:
        file.write('{"id": "u/2')
    again = StateStore(tmp_path, origin=ORIGIN)
    assert seen_numbers(again) == [0, 1]
    fill(again, [1, 2, 3])
    again.flush()
    last = StateStore(tmp_path, origin=ORIGIN)
    assert seen_numbers(last) == [0, 1, 2, 3]
    for number in range(4):
        assert torch.equal(last[utterance(number).id][0], states(number))


def test_ranks_see_states_of_other_ranks_after_refresh(tmp_path):
    first, second = (StateStore(tmp_path, origin=ORIGIN, rank=rank) for rank in (0, 1))
    fill(first, [0, 2])
    fill(second, [1, 3])
    first.flush()
    second.flush()
    assert seen_numbers(first) == [0, 2]
    first.refresh()
    assert seen_numbers(first) == [0, 1, 2, 3]
    assert torch.equal(first[utterance(3).id][0], states(3))


def test_two_runs_that_write_the_same_states_lose_none(tmp_path):
    """Both have rank 0. Their shards and their lines have names of their own."""
    first, second = (StateStore(tmp_path, origin=ORIGIN, shard_bytes=200) for _ in range(2))
    for number in range(30):
        for store in (first, second):
            fill(store, [number])
    first.flush()
    second.flush()
    for reader in (first, second, StateStore(tmp_path, origin=ORIGIN)):
        reader.refresh()
        assert seen_numbers(reader) == list(range(30))
        assert reader.totals() == (30, sum(4 + number for number in range(30)))
        for number in range(30):
            assert torch.equal(reader[utterance(number).id][0], states(number))


def test_states_of_a_lost_shard_are_computed_again(tmp_path):
    store = StateStore(tmp_path, origin=ORIGIN)
    fill(store, [0])
    store.flush()
    fill(store, [1])
    store.flush()
    sorted(tmp_path.glob("states-*.safetensors"))[0].unlink()
    assert seen_numbers(StateStore(tmp_path, origin=ORIGIN)) == [1]


def test_runs_that_start_at_the_same_time_agree_on_the_origin(tmp_path, monkeypatch):
    """The other process writes its origin after this one has seen that there is none."""
    plain = StateStore._write_origin

    def late(self, origin):
        monkeypatch.setattr(StateStore, "_write_origin", plain)
        StateStore(tmp_path, origin={**ORIGIN, "weights": "v"})
        plain(self, origin)

    monkeypatch.setattr(StateStore, "_write_origin", late)
    with pytest.raises(CheckpointError, match="weights is 'v', expected 'w'"):
        StateStore(tmp_path, origin=ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["origin.json"]


def test_full_disk_names_shard_and_bytes(tmp_path, monkeypatch):
    def full(states, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_store, "save_file", full)
    store = StateStore(tmp_path, origin=ORIGIN)
    fill(store, [0])
    with pytest.raises(CheckpointError, match=r"states-0-.*: cannot be written: .*No space left.* It needs 120 bytes"):
        store.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["origin.json"]


def test_folder_with_another_origin_is_refused(tmp_path):
    StateStore(tmp_path, origin=ORIGIN)
    with pytest.raises(CheckpointError, match="weights is 'w', expected 'v'"):
        StateStore(tmp_path, origin={**ORIGIN, "weights": "v"})
    with pytest.raises(CheckpointError, match=r"no origin\.json"):
        StateStore(tmp_path / "nothing")


@pytest.mark.parametrize("changed", [{"duration": 9.0}, {"offset": 0.5}, {"channel": 1}, {"audio_filepath": "b.wav"}])
def test_changed_audio_with_equal_id_is_refused(tmp_path, changed):
    store = StateStore(tmp_path, origin=ORIGIN)
    fill(store, [0])
    store.flush()
    store.check([utterance(0), utterance(1), utterance(0, text="new words", where="m:3")])
    with pytest.raises(CheckpointError, match=r"has states of 'u/0 é' \(m:7\) from other audio"):
        store.check([utterance(0, where="m:7", **changed)])


def test_edited_file_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"12345")
    store = StateStore(tmp_path / "s", origin=ORIGIN)
    store.put(utterance(0, audio_filepath=str(path)), states(0), 4)
    store.flush()
    path.write_bytes(b"123456")
    with pytest.raises(CheckpointError, match="from other audio"):
        store.check([utterance(0, audio_filepath=str(path))])


SIZE = 300_000


def written(folder, at=None):
    """A file of 300 kB, with one byte changed."""
    folder.mkdir(exist_ok=True)
    content = bytearray(number % 251 for number in range(SIZE))
    if at is not None:
        content[at] ^= 1
    (folder / "a.wav").write_bytes(content)
    return utterance(0, audio_filepath=str(folder / "a.wav"))


@pytest.mark.parametrize("at", [0, 65_535, 90_000, SIZE // 2, SIZE - 65_536, SIZE - 1])
def test_file_of_equal_name_and_size_with_other_audio_is_refused(tmp_path, at):
    store = StateStore(tmp_path / "s", origin=ORIGIN)
    store.put(written(tmp_path / "noisy"), states(0), 4)
    store.flush()
    store.check([written(tmp_path / "moved")])
    with pytest.raises(CheckpointError, match="from other audio"):
        store.check([written(tmp_path / "enhanced", at)])


def test_other_audio_with_the_id_of_an_utterance_is_refused_before_states_are_computed(tmp_path):
    store = StateStore(tmp_path, origin=ORIGIN)
    store.check([utterance(0), utterance(0, text="again"), utterance(1)])
    with pytest.raises(CheckpointError, match="'u/0 é' is other audio at train:1 and dev:2. Give each utterance an id"):
        store.check([utterance(0, where="train:1"), utterance(0, where="dev:2", audio_filepath="b.wav")])


def test_every_byte_of_a_short_file_counts(tmp_path):
    path = tmp_path / "a.wav"
    keys = set()
    for content in (b"1234567", b"1239567", b"1234568", b"9234567"):
        path.write_bytes(content)
        keys.add(audio_key(utterance(0, audio_filepath=str(path))))
    assert len(keys) == 4


def test_digest_depends_on_names_and_values():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    digests = [state_digest(pairs) for pairs in ([("a", a)], [("b", a)], [("a", b)], [("a", a), ("c", torch.zeros(0))])]
    assert len(set(digests)) == 4
    assert state_digest([("x", b), ("a", a)]) == state_digest([("a", a), ("x", b)])


def test_totals_and_size_are_those_of_the_files(tmp_path):
    store = StateStore(tmp_path / "new", origin=ORIGIN, shard_bytes=10_000)
    fill(store, range(3))
    assert (len(store), store.totals()) == (3, (0, 0)), "nothing is on disk yet"
    store.flush()
    assert (len(store), store.totals()) == (3, (3, 4 + 5 + 6))
    size = sum(path.stat().st_size for path in (tmp_path / "new").glob("*.safetensors"))
    assert size > 2 * 3 * 4 * (5 + 6 + 7), "float32 of 2 layers, 3 features and 5, 6 and 7 frames"
    assert store.gigabytes() == size / 1_000_000_000
