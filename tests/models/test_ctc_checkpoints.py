"""Checkpoints fine-tuned with CTC: their output layer and alphabet are kept, with the logits of transformers."""

import json

import pytest
import torch
import transformers

from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.errors import CheckpointError, UserError
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.ctc_checkpoints import read_ctc_vocabulary
from tests.toys import FAMILIES
from tests.training.toy_runs import build, toy_overrides

# The order differs from ours: here the blank is last.
VOCABULARY = ["<s>", "</s>", "<unk>", "|", "B", "A", "K", "C", "<pad>"]


@pytest.fixture(params=["wav2vec2_layer", "hubert_group"])
def fine_tuned(request, toy_checkpoints, tmp_path):
    folder = tmp_path / "fine_tuned"
    config = FAMILIES[request.param].config.from_pretrained(toy_checkpoints[request.param])
    config.vocab_size, config.pad_token_id = len(VOCABULARY), VOCABULARY.index("<pad>")
    model = transformers.AutoModelForCTC.from_config(config)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": FAMILIES[request.param].normalize}))
    return folder


def dev_batch(corpus):
    from ssl_asr.data.manifest import read_manifest

    dataset = SpeechDataset(read_manifest(corpus["dev"]), tokenizer=None)
    return collate([dataset[i] for i in range(len(dataset))])


def test_fine_tuned_checkpoint_equals_transformers(fine_tuned, toy_corpus):
    module = load_model(str(fine_tuned), InferenceOptions(), lambda _: None)
    theirs = transformers.AutoModelForCTC.from_pretrained(fine_tuned).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(fine_tuned)
    decoder = transformers.Wav2Vec2CTCTokenizer(fine_tuned / "vocab.json")
    batch = dev_batch(toy_corpus)
    with torch.inference_mode():
        log_probs_BFV, frames_B = module.log_probs(batch)
        texts = [hypothesis.text for hypothesis in module.transcribe(batch)]
        assert any(texts)
        for row, length in enumerate(batch.lengths_B):
            waveform = batch.waveform_BT[row, :length]
            values = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_values
            logits_FV = theirs(values).logits[0]
            alphabet = [" " if token == "|" else token.lower() for token in VOCABULARY]
            columns = [alphabet.index(c) for c in ("<pad>", "<unk>", *module.tokenizer.characters)]
            # Special tokens, such as <s>, have no column. The other columns are normalized again.
            ours_FV = log_probs_BFV[row, : frames_B[row]]
            expected_FV = logits_FV[:, columns].log_softmax(-1)
            torch.testing.assert_close(ours_FV, expected_FV, atol=1e-4, rtol=1e-4)
            best = logits_FV[:, columns].argmax(-1)
            ids = torch.tensor(columns)[best]
            text = decoder.decode(ids.tolist()).lower().replace("<unk>", "⁇")
            assert " ".join(texts[row].split()) == " ".join(text.split())


def test_evaluate_accepts_a_fine_tuned_checkpoint(fine_tuned, toy_corpus, run_command, tmp_path):
    done = run_command(
        "evaluate", f"model={fine_tuned}", f"manifest={toy_corpus['test']}", f"output_dir={tmp_path}", "num_workers=0"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "predictions" / "test.jsonl").read_text().splitlines()) == 5


def test_training_starts_from_the_pretrained_head(fine_tuned, toy_corpus, tmp_path):
    overrides = [*toy_overrides(fine_tuned, toy_corpus), "head=pretrained", "head.dropout=0"]
    kept = build(tmp_path / "a", *overrides, "tokenizer=pretrained")
    batch = dev_batch(toy_corpus)
    whole = load_model(str(fine_tuned), InferenceOptions(), lambda _: None)
    torch.testing.assert_close(kept.module.eval().log_probs(batch)[0], whole.log_probs(batch)[0])
    assert kept.module.tokenizer.characters == [" ", "b", "a", "k", "c"]
    kept.trainer.fit(kept.module, datamodule=kept.data)
    assert kept.trainer.global_step > 0


def test_shared_characters_keep_their_rows_in_another_alphabet(fine_tuned, toy_corpus, tmp_path):
    overrides = [*toy_overrides(fine_tuned, toy_corpus), "head=pretrained", "tokenizer=char"]
    run = build(tmp_path / "a", *overrides, "tokenizer.characters=' abckz'")
    weight = run.module.head.layers[-1].weight
    theirs = transformers.AutoModelForCTC.from_pretrained(fine_tuned).lm_head.weight
    assert run.module.tokenizer.characters == [" ", "a", "b", "c", "k", "z"]
    for row, token in enumerate(["<pad>", "<unk>", "|", "A", "B", "C", "K"]):
        assert torch.equal(weight[row], theirs[VOCABULARY.index(token)])
    assert all(not torch.equal(weight[7], row) for row in theirs)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"eng": {"a": 1}, "deu": {"a": 1}}, "expected one of the 2 languages"),
        ({"a": 0, "bc": 1, "<pad>": 2}, "not single characters: bc"),
        ({"|": 0, "b": 1}, r"has no blank \(<pad>\)"),
        ({"|": 0, "a": 1, "b": 1, "<pad>": 2}, "vocab.json: tokens 'a' and 'b' have the same id 1"),
        ({"|": 0, "a": 2, "b": 5, "<pad>": 8}, "vocab.json: no token has the id 1, 3, 4, 6, 7. The largest id is 8"),
        ({"|": 0, "a": -1, "<pad>": 8}, "token 'a' has the id -1, expected a number from 0"),
        ({"|": 0, "a": 10**12, "<pad>": 8}, "token 'a' has the id 1000000000000, expected"),
        ({"|": 0, "a": "1", "<pad>": 8}, "token 'a' has the id '1', expected"),
        ({"|": 0, "a": True, "<pad>": 8}, "token 'a' has the id True, expected"),
        (
            {"a": 1, "b": 2, "<pad>": 0},
            r"is 8 \(no token\) by pad_token_id in config.json, and 0 \(<pad>\) by vocab.json",
        ),
        ({**dict(zip("abcdefg|", range(1, 9), strict=True)), "<pad>": 0}, r"is 8 \('\|'\) by pad_token_id"),
        (dict(zip("abcdefgh", range(8), strict=True)) | {"<pad>": 8}, r"has no word delimiter \(\|\)"),
        ([1, 2], "is not a JSON object"),
    ],
)
def test_unsupported_vocabulary_is_refused(fine_tuned, vocabulary, message):
    (fine_tuned / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_ctc_vocabulary(fine_tuned)
    assert "\n" not in str(caught.value)


def test_vocabularies_that_are_in_use_are_read(fine_tuned):
    """Added tokens fill gaps, and scripts without spaces need no delimiter."""
    path = fine_tuned / "vocab.json"
    path.write_text(json.dumps({"好": 0, "天": 2, "a": 3, "<pad>": 8, "<unk>": 4}))
    (fine_tuned / "added_tokens.json").write_text(json.dumps({"<s>": 1, "</s>": 5}))
    (fine_tuned / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"6": {}, "7": {}}}))
    assert read_ctc_vocabulary(fine_tuned).rows == {"好": 0, "天": 2, "a": 3}
    path.write_text('{"|": 0, "a": 2, "a": 3, "<pad>": 8}')
    with pytest.raises(CheckpointError, match="vocab.json: .*the key 'a' is repeated"):
        read_ctc_vocabulary(fine_tuned)


def test_a_token_without_a_row_of_the_output_layer_is_refused(fine_tuned):
    more = {**{token: i for i, token in enumerate(VOCABULARY)}, "x": len(VOCABULARY)}
    (fine_tuned / "vocab.json").write_text(json.dumps(more))
    with pytest.raises(CheckpointError, match="token 'x' has the id 9, and the output layer has 9 rows"):
        load_model(str(fine_tuned), InferenceOptions(), lambda _: None)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": "\udcff"}', "[" * 100_000])
def test_a_config_that_is_no_json_object_is_one_line(fine_tuned, text):
    for name in ("config.json", "tokenizer_config.json"):
        original = (fine_tuned / name).read_bytes() if (fine_tuned / name).exists() else b"{}"
        (fine_tuned / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(CheckpointError, match=rf"{name}: is not (valid JSON|a JSON object)") as caught:
            read_ctc_vocabulary(fine_tuned)
        assert "\n" not in str(caught.value)
        (fine_tuned / name).write_bytes(original)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["tokenizer=bpe", "tokenizer.size=8"], "the pretrained head has characters as labels"),
        (["tokenizer=pretrained", "states=weighted_sum"], "last states unchanged"),
    ],
)
def test_pretrained_head_refuses_unsupported_tokenizers_and_states(fine_tuned, toy_corpus, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path / "a", *toy_overrides(fine_tuned, toy_corpus), "head=pretrained", *more)


def test_checkpoint_without_ctc_head_is_refused(toy_checkpoints, toy_corpus, tmp_path):
    with pytest.raises(CheckpointError, match="not fine-tuned with CTC"):
        build(tmp_path / "a", *toy_overrides(toy_checkpoints["wavlm_layer"], toy_corpus), "tokenizer=pretrained")
    with pytest.raises(CheckpointError, match="no decoder and no CTC head"):
        load_model(str(toy_checkpoints["wavlm_layer"]), InferenceOptions(), lambda _: None)


def test_checkpoint_with_subword_tokens_is_refused(fine_tuned):
    (fine_tuned / "vocab.json").unlink()
    message = "the tokens of its output layer are not characters"
    with pytest.raises(CheckpointError, match=message):
        read_ctc_vocabulary(fine_tuned)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(fine_tuned), InferenceOptions(), lambda _: None)
