"""Data, the loop around steps, and whole commands, each against the same job of transformers."""

import copy
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import soundfile
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

import ssl_asr
from ssl_asr.build.training import TrainingRun
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.alignment import UNKNOWN_TEXT
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.ssl_stem import normalize_waveform
from ssl_asr.types import SAMPLE_RATE, Batch, Utterance
from tests.benchmarks.suite.recognition import data_root
from tests.benchmarks.suite.rows import Options, Row, closeness, cpu_setup, timed
from tests.gpu.steps import ctc_batch, ssl_config
from tests.toys import save_checkpoint
from tests.training.toy_runs import build
from tests.waits import OnDevice

LABELS = ["<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]


def _speech(options: Options, count: int, kind: str) -> list[Utterance]:
    """Utterances of the LibriSpeech test set, at even distances, as files of 16-bit samples: FLAC or WAV."""
    manifest = read_manifest(data_root() / "en_librispeech_mini" / "test.jsonl")
    count = 4 if options.quick else count
    folder, utterances = Path(tempfile.mkdtemp()), []
    for utterance in list(manifest)[:: len(manifest) // count][:count]:
        path = folder / f"{utterance.id}.{kind}"
        soundfile.write(path, read_waveform(utterance).numpy(), SAMPLE_RATE, subtype="PCM_16")
        utterances.append(Utterance(utterance.id, str(path), utterance.duration, text=utterance.text))
    return utterances


def b12(options: Options) -> list[Row]:
    """A batch from stored audio. transformers' script stores the samples of each utterance in Arrow."""
    import datasets

    rows = []
    for kind, form in (("flac", "lists"), ("wav", "NumPy arrays")):
        utterances = _speech(options, 32, kind)
        dataset, extractor = SpeechDataset(utterances, tokenizer=None), Wav2Vec2FeatureExtractor(do_normalize=True)
        audio = [read_waveform(utterance).numpy() for utterance in utterances]
        values = extractor(audio, sampling_rate=SAMPLE_RATE).input_values
        stored = datasets.Dataset.from_dict({"input_values": values})
        table = stored if form == "lists" else stored.with_format("numpy")

        def ours(dataset=dataset) -> Batch:
            return collate([dataset[place] for place in range(len(dataset))])

        def theirs(table=table, extractor=extractor) -> Tensor:
            examples = [{"input_values": table[place]["input_values"]} for place in range(len(table))]
            return extractor.pad(examples, padding=True, return_tensors="pt")["input_values"]

        batch = ours()
        normalized_BT = normalize_waveform(batch.waveform_BT, batch.lengths_B)
        check = closeness("waveform", normalized_BT, theirs(), limit=1e-3)
        seconds = sum(utterance.duration for utterance in utterances)
        what = f"batch of {len(utterances)} utterances, {seconds:.0f} s, from {kind.upper()} files"
        rows.append(timed(options, "B12", what, f"samples in Arrow as {form}, and pad", ours, theirs, check=check))
    return rows


def b21(options: Options) -> list[Row]:
    """Points at which the forward and backward pass of an encoder would wait for a GPU, for unequal lengths."""
    setup = cpu_setup(options)
    config = ssl_config("wav2vec2_large", tiny=True)
    net = Wav2Vec2Model._from_config(config, attn_implementation="sdpa").train()
    encoder, batch = SSLEncoder(net=copy.deepcopy(net), normalize=True).train(), ctc_batch(setup, [1.0, 1.5, 2.0])
    mask_BT = (torch.arange(batch.waveform_BT.shape[1]) < batch.lengths_B[:, None]).long()

    def waits(side: nn.Module, forward: Callable[[], Tensor]) -> Counter[str]:
        given = [batch.waveform_BT, mask_BT, *side.parameters(), *side.buffers()]
        with OnDevice(given, refuse=False) as device:
            forward().sum().backward()
        return device.waits

    ours = waits(encoder, lambda: encoder(batch.waveform_BT, batch.lengths_B).h_BFD)
    theirs = waits(net, lambda: net(batch.waveform_BT, attention_mask=mask_BT).last_hidden_state)
    assert not ours, f"the encoder waits: {dict(ours)}"
    check = "theirs: " + ", ".join(f"{name} {count}" for name, count in sorted(theirs.items()))
    figures = {"ours": 0.0, "theirs": float(theirs.total()), "unit": "waits", "spread": None}
    ratio = float(max(1, theirs.total()))
    what = "waits for the device, layer-norm wav2vec2, forward and backward"
    return [Row(id="B21", what=what, peer="transformers", ratio=ratio, check=check, **figures)]


# The loop around steps.

STEPS, WARM_UP = 200, 20


def _tones(folder: Path, count: int) -> Path:
    """A manifest of tones of a tenth of a second."""
    draw, lines = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number}.wav"
        soundfile.write(path, (0.1 * draw.standard_normal(SAMPLE_RATE // 10)).astype(np.float32), SAMPLE_RATE)
        line = {"id": str(number), "audio_filepath": str(path), "duration": 0.1, "text": "ab"}
        lines.append(json.dumps(line) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder / "train.jsonl"


def our_run(folder: Path, checkpoint: Path, updates: int, *overrides: str) -> TrainingRun:
    """A run of ``train`` on the CPU: wav2vec2 with CTC, all weights, four tones a batch, metrics logged to CSV.

    Args:
        folder: Folder of the run.
        checkpoint: Folder of the pretrained weights.
        updates: Number of updates.
        overrides: Further settings, as on a command line.
    """
    manifest = _tones(folder, 4 * updates)
    return build(
        folder / "run",
        *("backbone=wav2vec2_base", f"backbone.source={checkpoint}", f"data.train={manifest}", "data.dev=null"),
        *("data.test=null", "data.max_batch_s=1000", "data.max_batch_size=4", "data.num_workers=1", "freeze=false"),
        *("trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=csv", *overrides),
    )


def their_run(folder: Path, model: nn.Module, updates: int, callbacks: list, **own) -> transformers.Trainer:
    """The same by ``Trainer``, with data in memory and its progress logged every ten updates.

    Args:
        folder: Folder of the run.
        model: A ``Wav2Vec2ForCTC``.
        updates: Number of updates.
        callbacks: Callbacks of ``Trainer``.
        own: Further ``TrainingArguments``.
    """
    settings = {"logging_steps": 10, "report_to": [], "use_cpu": True, "disable_tqdm": True, **own}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=4, num_train_epochs=1, **settings
    )
    data = [their_row()] * (4 * updates)
    return transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=callbacks)


def their_row() -> dict[str, Tensor]:
    """A tone with two labels, as the models of transformers take it."""
    values = np.random.default_rng(0).standard_normal(SAMPLE_RATE // 10).astype(np.float32)
    return {"input_values": torch.from_numpy(values), "labels": torch.tensor([3, 4])}


def _median_gap(moments: list[float]) -> float:
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    return statistics.median(gaps[WARM_UP:])


def _bare_loop(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int) -> float:
    """Median CPU seconds of a step without any framework."""
    optimizer, moments = torch.optim.AdamW(parameters, lr=1e-5, fused=True), []
    for _ in range(steps):
        moments.append(time.process_time())
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return _median_gap(moments)


def _our_overhead(folder: Path, steps: int) -> float:
    """CPU seconds that ``train`` adds to each step, without its data worker, with its metrics logged to CSV."""
    run = our_run(folder, save_checkpoint("wav2vec2_group", folder / "toy"), steps)
    moments: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            self.batch = batch
            moments.append(time.process_time())

    clock = Clock()
    run.trainer.callbacks.append(clock)
    run.trainer.fit(run.module, datamodule=run.data)
    module = run.module.train()

    def loss() -> Tensor:
        sums = module.loss(clock.batch)
        return sums.total / sums.count

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return _median_gap(moments) - _bare_loop(loss, parameters, steps)


def _their_overhead(folder: Path, steps: int) -> float:
    """CPU seconds that ``Trainer`` adds to each step, with data in memory, and its progress logged every ten steps."""
    checkpoint = save_checkpoint("wav2vec2_group", folder / "toy")
    config = transformers.Wav2Vec2Config.from_pretrained(checkpoint, ctc_loss_reduction="mean")
    model = Wav2Vec2ForCTC(config).train()
    moments: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            moments.append(time.process_time())

    their_run(folder, model, steps, [Clock()], save_strategy="no").train()
    batch = default_collate([their_row()] * 4)
    return _median_gap(moments) - _bare_loop(lambda: model(**batch).loss, list(model.parameters()), steps)


def b23(options: Options) -> list[Row]:
    """CPU time that the loop adds to each step, with a tiny model."""
    steps = WARM_UP + (5 if options.quick else STEPS)
    ours, theirs = [], []
    for _ in range(1 if options.quick else 3):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            ours.append(1000 * _our_overhead(Path(one), steps))
            theirs.append(1000 * _their_overhead(Path(other), steps))
    ratios = [their_ms / our_ms for our_ms, their_ms in zip(ours, theirs, strict=True)]
    figures = {"ours": statistics.median(ours), "theirs": statistics.median(theirs), "unit": "ms"}
    spread = (min(ratios), max(ratios))
    what = "CPU time that the loop adds to a step, logging on"
    check = f"medians of {steps - WARM_UP} steps, less those of a bare loop"
    ratio = statistics.median(ratios)
    return [Row(id="B23", what=what, peer="Trainer", ratio=ratio, spread=spread, check=check, **figures)]


# A whole command.


def ctc_checkpoint(folder: Path, *, tiny: bool) -> Path:
    """A layer-norm wav2vec2 with random weights and the shape of the base model, as transformers saves it."""
    own = {} if tiny else {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = ssl_config("wav2vec2_large", tiny=tiny)
    for key, value in {**own, **({} if tiny else {"intermediate_size": 3072}), "vocab_size": len(LABELS)}.items():
        setattr(config, key, value)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({label: i for i, label in enumerate(LABELS)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


def b24(options: Options) -> list[Row]:
    """Audio files to texts, with a CTC model."""
    utterances = _speech(options, 16, "flac")
    folder = ctc_checkpoint(Path(tempfile.mkdtemp()), tiny=options.quick)
    ours = ssl_asr.load(folder, device="cpu")
    net = Wav2Vec2ForCTC.from_pretrained(folder, attn_implementation="sdpa").eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    paths = [utterance.audio_filepath for utterance in utterances]

    def our_texts() -> list[str]:
        return [found.text for found in ours.transcribe(paths, vad=False)]

    def their_texts() -> list[str]:
        audio = [soundfile.read(path, dtype="float32")[0] for path in paths]
        inputs = extractor(audio, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        with torch.inference_mode():
            labels_BF = net(**inputs).logits.argmax(-1)
        # Random weights find labels in the padding, where trained ones find blanks.
        frames_B = net._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
        is_padding_BF = torch.arange(labels_BF.shape[1]) >= frames_B[:, None]
        texts = tokenizer.batch_decode(labels_BF.masked_fill(is_padding_BF, 0))
        return [" ".join(text.replace("<unk>", UNKNOWN_TEXT).split()) for text in texts]

    same = sum(a == b for a, b in zip(our_texts(), their_texts(), strict=True))
    seconds = sum(utterance.duration for utterance in utterances)
    what = f"files to texts, CTC of 12 layers, {len(paths)} files, {seconds:.0f} s"
    check = f"{same} of {len(paths)} texts equal"
    peer = "one batch in the order of the list"
    return [timed(options, "B24", what, peer, our_texts, their_texts, check=check)]
