"""Whisper: log-mel, windows, padding, cache and real weights, against transformers."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from ssl_asr.models.freezing import check_partition
from ssl_asr.models.whisper import LogMel, WhisperBackbone, WhisperSeq2Seq
from tests.toys import NO_TIMESTAMPS, START

LENGTHS = [16000, 44321, 8001, 160]


@pytest.fixture
def waveforms():
    return [torch.randn(n) * scale for n, scale in zip(LENGTHS, (0.3, 0.001, 1.0, 0.1), strict=True)]


def model_of(folder, window="30s", tail_s=0.5):
    backbone = WhisperBackbone(
        source=str(folder), revision=None, window=window, tail_s=tail_s, train_tail_s=None, recommended_freeze="none"
    )
    return backbone.load_seq2seq(folder).eval()


def padded(waveforms):
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_of_a_batch_equals_transformers_for_each_utterance(waveforms, n_mels):
    """The dynamic range depends on the maximum of the utterance, not of the batch."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    ours = LogMel(n_mels=n_mels)(padded(waveforms)[0], 3000)
    for row, waveform in enumerate(waveforms):
        expected = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_features[0]
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [400, 16000, 16001, 16159, 16160, 100_000, 479_999, 480_000])
def test_log_mel_of_the_real_window_equals_the_first_frames_of_30_s(samples):
    waveform = torch.randn(1, samples)
    extractor = WhisperFeatureExtractor()
    expected = extractor(waveform[0].numpy(), sampling_rate=16000, return_tensors="pt").input_features
    frames = -(-samples // 160)
    torch.testing.assert_close(LogMel(n_mels=80)(waveform, frames), expected[..., :frames], atol=1e-4, rtol=1e-4)


def test_encoder_and_decoder_equal_transformers(toy_checkpoints, waveforms):
    model = model_of(toy_checkpoints["whisper"])
    reference = WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"]).eval()
    tokens = torch.randint(0, 250, (len(waveforms), 9))
    tokens[:, :2] = torch.tensor([START, NO_TIMESTAMPS])
    out = model.encoder(*padded(waveforms))
    features = model.encoder.log_mel(padded(waveforms)[0], 3000)
    expected = reference(input_features=features, decoder_input_ids=tokens)
    torch.testing.assert_close(out.h_BFD, expected.encoder_last_hidden_state, atol=1e-5, rtol=1e-4)
    logits = model.logits(model(tokens, out.h_BFD, out.context_lengths_B))
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", ["real", "30s"])
def test_padding_does_not_change_states_and_logits(toy_checkpoints, waveforms, window):
    model = model_of(toy_checkpoints["whisper"], window)
    tokens = torch.randint(0, 250, (len(waveforms), 6))
    out = model.encoder(*padded(waveforms))
    logits = model.logits(model(tokens, out.h_BFD, out.context_lengths_B))
    for row, waveform in enumerate(waveforms):
        alone = model.encoder(waveform[None], torch.tensor([len(waveform)]))
        context = int(alone.context_lengths_B[0])
        assert int(out.context_lengths_B[row]) == context == alone.h_BFD.shape[1]
        assert int(out.frame_lengths_B[row]) == -(-len(waveform) // 320)
        torch.testing.assert_close(out.h_BFD[row, :context], alone.h_BFD[0], atol=1e-4, rtol=1e-4)
        alone_logits = model.logits(model(tokens[row : row + 1], alone.h_BFD, alone.context_lengths_B))
        torch.testing.assert_close(logits[row], alone_logits[0], atol=1e-4, rtol=1e-4)


def test_real_window_with_a_tail_of_30_s_equals_the_30_s_window(toy_checkpoints, waveforms):
    real = model_of(toy_checkpoints["whisper"], "real", tail_s=29.999)
    whole = model_of(toy_checkpoints["whisper"])
    with torch.inference_mode():
        a, b = real.encoder(*padded(waveforms[:2])), whole.encoder(*padded(waveforms[:2]))
    assert a.context_lengths_B.tolist() == [1500, 1500]
    torch.testing.assert_close(a.h_BFD, b.h_BFD, atol=1e-4, rtol=1e-4)


def test_frame_lengths_count_the_frames_of_the_utterance(toy_checkpoints, waveforms):
    for window in ("real", "30s"):
        encoder = model_of(toy_checkpoints["whisper"], window).encoder
        out = encoder(*padded(waveforms))
        assert out.frame_lengths_B.tolist() == [-(-n // 320) for n in LENGTHS]
        assert bool((out.frame_lengths_B <= out.context_lengths_B).all())


def test_tail_varies_only_in_train_mode(toy_checkpoints):
    encoder = model_of(toy_checkpoints["whisper"], "real", tail_s=1.0).encoder
    encoder.train_tail_s = (0.0, 2.0)
    lengths = torch.full((64,), 16000)
    assert set(encoder._context_samples(lengths).tolist()) == {32000}
    encoder.train()
    drawn = [set(encoder._context_samples(lengths).tolist()) for _ in range(64)]
    assert all(len(batch) == 1 for batch in drawn)
    tails = set.union(*drawn)
    assert min(tails) >= 16000
    assert max(tails) <= 48000
    assert len(tails) > 30
    assert encoder._context_samples(torch.tensor([479_000])).tolist() <= [480_000]


def test_cached_steps_equal_teacher_forcing(toy_checkpoints, waveforms):
    model = model_of(toy_checkpoints["whisper"], "real")
    tokens = torch.randint(0, 250, (len(waveforms), 8))
    out = model.encoder(*padded(waveforms))
    whole = model.logits(model(tokens, out.h_BFD, out.context_lengths_B))
    state = model.begin(out.h_BFD, out.context_lengths_B, 8)
    torch.testing.assert_close(model.step(tokens[:, :3], state), whole[:, 2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.step(tokens[:, 3:4], state), whole[:, 3], atol=1e-4, rtol=1e-4)
    kept = torch.tensor([2, 0])
    state.keep(kept)
    torch.testing.assert_close(model.step(tokens[kept, 4:5], state), whole[kept, 4], atol=1e-4, rtol=1e-4)


def test_layer_groups_partition_encoder_and_decoder(toy_checkpoints):
    model = model_of(toy_checkpoints["whisper"])
    check_partition(model.encoder.layer_groups(), model.encoder.parameters())
    check_partition(model.decoder_groups(), model.net.parameters())
    fixed = [name for name, p in model.encoder.named_parameters() if not p.requires_grad]
    assert fixed == ["net.embed_positions.weight"], "position embeddings are fixed"


def test_description_rebuilds_the_model(toy_checkpoints, waveforms):
    model = model_of(toy_checkpoints["whisper"], "real")
    twin = WhisperSeq2Seq.from_description(model.description()).eval()
    twin.load_state_dict(model.state_dict())
    assert twin.generation == model.generation
    torch.testing.assert_close(twin.encoder(*padded(waveforms)).h_BFD, model.encoder(*padded(waveforms)).h_BFD)


def test_half_precision_checkpoint_is_loaded_in_float32(toy_checkpoints, tmp_path):
    reference = WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"])
    reference.half().save_pretrained(tmp_path)
    for file in ("tokenizer.json", "generation_config.json"):
        (tmp_path / file).write_bytes((toy_checkpoints["whisper"] / file).read_bytes())
    assert {p.dtype for p in model_of(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("beams", [1, 5])
def test_real_weights_give_the_tokens_of_transformers(whisper_tiny_en, data_root, beams):
    """Greedy and beam search on a batch of real speech, with the 30 s window, against ``generate`` one by one."""
    from ssl_asr.data.audio import read_waveform
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
    from ssl_asr.decoding.beam import beam_search
    from ssl_asr.decoding.greedy import greedy_decode
    from ssl_asr.decoding.step_model import Constraints, Suppression

    manifest = read_manifest(data_root / "en_an4" / "test.jsonl")
    utterances = [manifest[i] for i in np.linspace(0, len(manifest) - 1, 6).astype(int)]
    tokenizer = WhisperTokenizer.from_folder(whisper_tiny_en, language=None, task="transcribe", normalizer="none")
    model = model_of(whisper_tiny_en)
    waveforms = [read_waveform(u) for u in utterances]
    suppression = Suppression(
        always=tuple(model.generation["suppress_tokens"]), first=tuple(model.generation["begin_suppress_tokens"])
    )
    reference = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_en, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor()
    with torch.inference_mode():
        out = model.encoder(*padded(waveforms))
        prompts = [tokenizer.prompt(u) for u in utterances]
        search = (model, out.h_BFD, out.context_lengths_B, prompts)
        constraints = Constraints(end_id=tokenizer.end_id, suppression=suppression)
        if beams == 1:
            decoded = greedy_decode(*search, constraints=constraints)
        else:
            found = beam_search(*search, constraints=constraints, beam_size=beams, length_penalty=1.0, n_best=1)
            decoded = [best for best, *_ in found]
        for row, waveform in zip(decoded, waveforms, strict=True):
            features = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_features
            expected = reference.generate(features, num_beams=beams, do_sample=False)[0].tolist()
            assert tokenizer.decode(row.tokens) == tokenizer.decode(expected)
            assert row.tokens == [i for i in expected if i < tokenizer.end_id]


def test_real_weights_give_the_timestamps_of_transformers(whisper_tiny_en, data_root):
    from ssl_asr.data.audio import read_waveform
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
    from ssl_asr.decoding.greedy import greedy_decode
    from ssl_asr.decoding.step_model import Constraints, Suppression
    from ssl_asr.decoding.timestamps import TimestampRules

    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    waveforms = [read_waveform(manifest[i]) for i in (0, 40, 90, 150)]
    tokenizer = WhisperTokenizer.from_folder(whisper_tiny_en, language=None, task="transcribe", normalizer="none")
    model = model_of(whisper_tiny_en)
    reference = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_en, dtype=torch.float32).eval()
    rules = TimestampRules(
        begin=tokenizer.timestamp_begin_id,
        no_timestamps=tokenizer.no_timestamps_id,
        end=tokenizer.end_id,
        latest_first=model.generation.get("max_initial_timestamp_index"),
    )
    suppression = Suppression(
        always=tuple(model.generation["suppress_tokens"]), first=tuple(model.generation["begin_suppress_tokens"])
    )
    with torch.inference_mode():
        out = model.encoder(*padded(waveforms))
        constraints = Constraints(end_id=tokenizer.end_id, suppression=suppression, rules=[rules])
        prompts = [[tokenizer.start_id]] * 4
        found = greedy_decode(model, out.h_BFD, out.context_lengths_B, prompts, constraints=constraints)
        for row, waveform in zip(found, waveforms, strict=True):
            features = WhisperFeatureExtractor()(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
            generated = reference.generate(
                features.input_features, return_timestamps=True, num_beams=1, do_sample=False
            )
            expected = [i for i in generated[0].tolist() if i not in (tokenizer.start_id, tokenizer.end_id)]
            assert row.tokens == expected
            assert sum(i >= tokenizer.timestamp_begin_id for i in row.tokens) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize(
    ("corpus", "name", "lang", "first"),
    [
        ("en_an4", "openai/whisper-tiny.en", None, None),
        ("en_librispeech_mini", "openai/whisper-tiny.en", None, None),
        ("de_kerstin", "openai/whisper-base", "de", 24),
    ],
)
def test_every_test_utterance_has_the_text_of_transformers(
    data_root, run_command, tmp_path, corpus, name, lang, first, beams
):
    """The batched ``evaluate`` command against ``generate`` one by one."""
    import json

    from ssl_asr.data.audio import read_waveform
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
    from ssl_asr.errors import CheckpointError
    from ssl_asr.models.checkpoints import resolve_checkpoint

    try:
        checkpoint = resolve_checkpoint(name)
    except CheckpointError as error:
        pytest.skip(str(error))
    utterances = list(read_manifest(data_root / corpus / "test.jsonl"))[:first]
    rows = [
        {"id": u.id, "audio_filepath": u.audio_filepath, "duration": u.duration, "text": u.text} for u in utterances
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [f"output_dir={tmp_path}", "samples=0", *([] if beams == 1 else ["decoder=whisper_beam"])]
    more += [] if lang is None else [f"language={lang}"]
    done = run_command("evaluate", f"model={checkpoint}", f"manifest={path}", *more)
    assert done.returncode == 0, done.stderr
    ours = {row["id"]: row["hyp"] for row in map(json.loads, open(tmp_path / "predictions" / "test.jsonl"))}
    reference = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = WhisperTokenizer.from_folder(checkpoint, language=lang, task="transcribe", normalizer="none")
    extractor = WhisperFeatureExtractor()
    asked = {} if lang is None else {"language": lang, "task": "transcribe"}
    theirs = {}
    for utterance in utterances:
        waveform = read_waveform(utterance).numpy()
        features = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_features
        with torch.inference_mode():
            generated = reference.generate(features, num_beams=beams, do_sample=False, **asked)[0].tolist()
        theirs[utterance.id] = tokenizer.decode(generated)
    assert ours == theirs
