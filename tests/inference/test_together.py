"""Several recordings at once: what is in a batch, what they return, and how they end."""

import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ssl_asr.data.dataset import collate
from ssl_asr.inference.recording import go_on
from ssl_asr.inference.together import Job, run_together
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.training.module import TEXT_ONLY, TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Example, Hypothesis, Utterance


class Model:
    """Writes the id and the first sample of each utterance, and what was encoded."""

    device = torch.device("cpu")
    speech_encoder = SimpleNamespace(encoded_s=lambda seconds_N: seconds_N, budget_s=lambda given: given or 40.0)
    long_form = "timestamps"

    def __init__(self):
        self.batches, self.threads = [], set()

    def encode(self, batch):
        self.threads.add(threading.get_ident())
        frames_B = torch.tensor([length // SAMPLE_RATE for length in batch.lengths_B.tolist()])
        h_BFD = torch.zeros(len(batch), int(frames_B.max()), 2)
        for row, frames in enumerate(frames_B.tolist()):
            h_BFD[row, :frames] = batch.waveform_BT[row, 0]
        return EncoderOutput(h_BFD, frames_B, frames_B)

    def transcribe(self, batch, out=None, options=TEXT_ONLY):
        self.threads.add(threading.get_ident())
        self.batches.append([utterance.id for utterance in batch.utterances])
        out = self.encode(batch) if out is None else out
        sums = [float(out.h_BFD[row, :frames].sum()) for row, frames in enumerate(out.context_lengths_B.tolist())]
        assert out.h_BFD.sum() == pytest.approx(sum(sums)), "something is in the padding"
        return [
            Hypothesis(one.id, f"{one.id}={total:g}", 0.0) for one, total in zip(batch.utterances, sums, strict=True)
        ]


def example(name, seconds, value):
    return Example(Utterance(name, "", seconds), torch.full((int(seconds * SAMPLE_RATE),), float(value)), [])


def job(number, parts, *, encoded=False):
    """A recording whose parts, of these lengths, are transcribed together, and then its first part once more."""

    def run(model, check):
        check()
        batch = collate([example(f"{number}{'abc'[row]}", seconds, number) for row, seconds in enumerate(parts)])
        out = model.encode(batch) if encoded else None
        texts = [one.text for one in model.transcribe(batch, out)]
        again = model.transcribe(collate([example(f"{number}!", parts[0], number)]))
        return texts + [one.text for one in again]

    return Job(run, float(sum(parts)))


PARTS = [(4, 9), (5,), (6, 7, 8), (4,), (9, 9)]


def expected(number, parts):
    texts = [f"{number}{'abc'[row]}={2 * seconds * number:g}" for row, seconds in enumerate(parts)]
    return [*texts, f"{number}!={2 * parts[0] * number:g}"]


@pytest.mark.parametrize("encoded", [False, True])
def test_results_are_those_of_recordings_alone(encoded):
    jobs = [job(number, parts, encoded=encoded) for number, parts in enumerate(PARTS)]
    found = dict(run_together(Model(), jobs, max_batch_s=None))
    alone = {number: one.function(Model(), go_on) for number, one in enumerate(jobs)}
    assert found == alone == {number: expected(number, parts) for number, parts in enumerate(PARTS)}


def test_recordings_share_batches_whatever_the_speed_of_their_threads():
    """Rounds by hand: four recordings start, and a fifth if what waits is less than 40 seconds."""
    seen = []
    for slow in range(5):
        gate = threading.Event()

        def late(model, check, number=slow, gate=gate):
            gate.wait(0.05)
            return job(number, PARTS[number]).function(model, check)

        jobs = [job(number, parts) for number, parts in enumerate(PARTS)]
        jobs[slow] = replace(jobs[slow], function=late)
        model = Model()
        results = list(run_together(model, jobs, max_batch_s=None))
        assert [place for place, _ in results] == [0, 1, 2, 3, 4]
        seen.append([sorted(batch) for batch in model.batches])
    assert all(one == seen[0] for one in seen)
    # 43 seconds wait in the first round, which is more than a batch. 19 seconds wait after it.
    first = [["0a", "1a", "3a"], ["0b", "2a", "2b", "2c"]]
    assert seen[0] == [*first, ["0!", "3!"], ["1!", "2!", "4a", "4b"], ["4!"]]


def test_the_model_runs_in_the_thread_of_the_caller():
    model = Model()
    list(
        run_together(model, [job(number, parts, encoded=True) for number, parts in enumerate(PARTS)], max_batch_s=None)
    )
    assert model.threads == {threading.get_ident()}


def test_options_are_not_mixed():
    model = Model()
    timed = TranscribeOptions(timestamps=True)

    def run(number, options):
        return Job(lambda model, _: model.transcribe(collate([example(f"{number}", 2.0, 1)]), options=options), 2.0)

    list(run_together(model, [run(0, TEXT_ONLY), run(1, timed), run(2, TEXT_ONLY)], max_batch_s=None))
    assert model.batches == [["0", "2"], ["1"]]


def test_one_recording_runs_without_a_thread():
    found = []
    model = Model()
    alone = Job(lambda given, _: found.append((given, threading.get_ident())), 1.0)
    results = list(run_together(model, [alone], max_batch_s=None))
    assert results == [(0, None)]
    assert found == [(model, threading.get_ident())]
    assert list(run_together(model, [], max_batch_s=None)) == []


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "recording"]


@pytest.mark.parametrize("where", ["recording", "model"])
def test_an_error_ends_all_threads(where):
    class Broken(Model):
        def transcribe(self, batch, out=None, options=TEXT_ONLY):
            if where == "model" and "2b" in [one.id for one in batch.utterances]:
                raise ValueError("the model")
            return super().transcribe(batch, out, options)

    def broken(model, check):
        raise ValueError("the recording")

    jobs = [job(number, parts) for number, parts in enumerate(PARTS)]
    if where == "recording":
        jobs[2] = Job(broken, 1.0)
    with pytest.raises(ValueError, match=where):
        list(run_together(Broken(), jobs, max_batch_s=None))
    assert threads() == []


def test_a_caller_that_stops_early_ends_all_threads():
    results = run_together(Model(), [job(number, parts) for number, parts in enumerate(PARTS)], max_batch_s=None)
    next(results)
    results.close()
    assert threads() == []


def test_results_of_other_recordings_come_before_an_error():
    def broken(model, check):
        raise ValueError("the first")

    jobs = [Job(broken, 1.0), *(Job(lambda model, check, n=n: n, 1.0) for n in range(3))]
    results, found = run_together(Model(), jobs, max_batch_s=None), []

    def collect():
        for result in results:
            found.append(result)  # noqa: PERF402  # what came before the error is kept

    with pytest.raises(ValueError, match="the first"):
        collect()
    assert found == [(1, 0), (2, 1), (3, 2)]


def test_an_interruption_ends_recordings_at_the_next_part_that_they_read():
    """One recording reads 1,000 parts when Ctrl-C is pressed, and another waits for the model."""
    blocks = []

    def reads(model, check):
        for block in range(1000):
            check()
            blocks.append(block)
            if block == 3:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.01)

    def waits(model, check):
        model.encode(collate([example("x", 1.0, 1)]))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run_together(Model(), [Job(reads, 1.0), Job(waits, 1.0)], max_batch_s=None))
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads() == []
    assert 4 <= len(blocks) < 1000


def test_a_recording_that_fills_batches_runs_alone_until_its_last_parts():
    now, most = set(), []

    def run(name):
        def long(model, check):
            now.add(name)
            for part in range(3):
                seconds = 50 if part < 2 else 10
                model.transcribe(collate([example(f"{name}{part}", seconds, 1)]))
                most.append(set(now))
            now.discard(name)

        return Job(long, 110.0)

    list(run_together(Model(), [run(name) for name in "abc"], max_batch_s=None))
    assert most[:2] == [{"a"}, {"a"}]
    assert max(map(len, most)) == 2


def test_many_recordings_do_not_all_start_at_once():
    most, now, lock = [0], [0], threading.Lock()

    def run(model, check):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        model.encode(collate([example("x", 1.0, 1)]))
        with lock:
            now[0] -= 1
        return True

    found = list(run_together(Model(), [Job(run, 1.0)] * 100, max_batch_s=None))
    assert [place for place, _ in found] == list(range(100))
    assert most[0] <= 32


def test_joined_outputs_are_those_of_each():
    generator = torch.Generator().manual_seed(0)

    def output(frames):
        widest = max(frames)
        h_BFD = torch.randn(len(frames), widest, 3, generator=generator)
        lengths_B = torch.tensor(frames)
        return EncoderOutput(h_BFD, lengths_B, lengths_B + 0, (h_BFD + 1, h_BFD))

    outs = [output([3, 5]), output([2]), output([7, 1, 4])]
    joined = EncoderOutput.joined(outs)
    assert joined.h_BFD.shape == (6, 7, 3)
    assert joined.context_lengths_B.tolist() == joined.frame_lengths_B.tolist() == [3, 5, 2, 7, 1, 4]
    for first, out in zip([0, 2, 3], outs, strict=True):
        count, width, _ = out.h_BFD.shape
        for ours, theirs in zip([joined.h_BFD, *joined.layers], [out.h_BFD, *out.layers], strict=True):
            assert torch.equal(ours[first : first + count, :width], theirs)
            assert not ours[first : first + count, width:].any()
