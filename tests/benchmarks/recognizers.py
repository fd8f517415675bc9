"""Our recognizers and those of other libraries, each run in its own process.

    python tests/benchmarks/recognizers.py NAME OPTIONS

NAME is one of `KINDS`, OPTIONS its settings as JSON. The process prints "ready" as JSON when the model is loaded. Each
line of standard input is a JSON list of ``.npy`` files: audio at 16 kHz, or log-probabilities. Each line of standard
output has the texts and the seconds of one input line. Any interpreter that has the other library can run this file,
since ssl_asr is imported only where it is used.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def ours_whisper(*, model, window, tail_s, beams, batch, max_tokens_per_s=None):
    """Our Python API. A batch is one call."""
    import ssl_asr

    name, options = ("whisper_beam", {"beam_size": beams}) if beams > 1 else ("whisper_greedy", {})
    options["max_tokens_per_s"] = max_tokens_per_s
    transcriber = ssl_asr.load(model, device="cpu", window=window, tail_s=tail_s, decoder=name, decoder_options=options)

    def run(paths):
        hypotheses = transcriber.transcribe([np.load(path) for path in paths], max_batch_s=30.0 * batch, vad=False)
        return [hypothesis.text for hypothesis in hypotheses]

    return run


def transformers_whisper(*, model, beams):
    """``generate`` of transformers. A batch is one call."""
    import torch
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    net = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    extractor = WhisperFeatureExtractor()

    def run(paths):
        audio = [np.load(path) for path in paths]
        features = extractor(audio, sampling_rate=16000, return_tensors="pt").input_features
        with torch.inference_mode():
            tokens = net.generate(features, num_beams=beams, do_sample=False)
        return tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=True)

    return run


def faster_whisper(*, model, compute_type, beams, batched):
    """``WhisperModel.transcribe``, one file at a time. With ``batched``, its engine on the whole batch."""
    import ctranslate2
    from faster_whisper import WhisperModel

    net = WhisperModel(model, device="cpu", compute_type=compute_type, cpu_threads=2)
    options = {
        "beam_size": beams,
        "temperature": 0.0,
        "without_timestamps": True,
        "condition_on_previous_text": False,
        "no_speech_threshold": None,
        "log_prob_threshold": None,
        "compression_ratio_threshold": None,
    }

    def one_by_one(paths):
        return ["".join(part.text for part in net.transcribe(np.load(path), **options)[0]) for path in paths]

    def together(paths):
        features = [net.feature_extractor(np.load(path), chunk_length=30)[:, :3000] for path in paths]
        padded = np.stack([np.pad(one, ((0, 0), (0, 3000 - one.shape[1]))) for one in features])
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(padded, dtype=np.float32))
        start = [net.hf_tokenizer.token_to_id(name) for name in ("<|startoftranscript|>", "<|notimestamps|>")]
        found = net.model.generate(view, [start] * len(paths), beam_size=beams)
        return [net.hf_tokenizer.decode(one.sequences_ids[0]) for one in found]

    return together if batched else one_by_one


def _padded(paths, last=None):
    import torch

    loaded = [np.load(path) for path in paths]
    each = [torch.from_numpy(one if last is None else np.concatenate([one, last])) for one in loaded]
    lengths_B = torch.tensor([len(one) for one in each])
    return torch.nn.utils.rnn.pad_sequence(each, batch_first=True), lengths_B


def ours_ctc(*, labels, options, tables=True):
    """`CtcBeam`, or `CtcGreedy` if ``options`` is None. ``labels`` start with the blank and the unknown label.

    Without ``tables``, the search computes the scores of n-gram models on the host, state by state.
    """
    from ssl_asr.config.nodes import option_node
    from ssl_asr.config.options import build_option
    from ssl_asr.decoding.fusion.automata import Automaton, LabelNGram
    from ssl_asr.decoding.fusion.words import Words

    if not tables:
        Words.table = LabelNGram.table = Automaton.table
    node = option_node("decoder", "ctc_greedy") if options is None else option_node("decoder", "ctc_beam", options)
    search = build_option(node, "decoder").build([None, None, *labels[2:]])

    def run(paths):
        return ["".join(labels[i] for i in found[0].tokens) for found in search(*_padded(paths))]

    return run


def pyctcdecode(*, labels, beam_size, lm=None, words=None, lm_weight=0.0, word_score=0.0):
    """pyctcdecode, one utterance at a time."""
    from pyctcdecode import build_ctcdecoder

    spelt = ["", "⁇", *labels[2:]]
    decoder = build_ctcdecoder(spelt, lm, unigrams=words, alpha=lm_weight, beta=word_score, unk_score_offset=-10.0)

    def run(paths):
        return [decoder.decode(np.load(path), beam_width=beam_size) for path in paths]

    return run


def flashlight(*, labels, beam_size, lm=None, lexicon=None, lm_weight=0.0, word_score=0.0):
    """``ctc_decoder`` of torchaudio. A batch is one call."""
    from torchaudio.models.decoder import ctc_decoder

    tokens = ["-", "<unk>", *("|" if label == " " else label for label in labels[2:])]
    decoder = ctc_decoder(
        lexicon=lexicon,
        tokens=tokens,
        lm=lm,
        beam_size=beam_size,
        beam_threshold=15.0,
        # torchaudio's language-model scores are decimal logarithms.
        lm_weight=lm_weight * float(np.log(10.0)),
        word_score=word_score,
        log_add=True,
    )

    # Each word must end in silence. An extra last frame provides it after the last word, at no cost.
    last = np.full((1, len(tokens)), -1e4, dtype=np.float32)
    last[0, [0, tokens.index("|")]] = 0.0

    def run(paths):
        found = decoder(*_padded(paths, last))
        if lexicon is not None:
            return [" ".join(best[0].words) for best in found]
        return ["".join(tokens[i] for i in best[0].tokens.tolist()).replace("|", " ").strip() for best in found]

    return run


def speechbrain(*, labels, beam_size, lm=None, words=None, lm_weight=0.0, word_score=0.0):
    """``CTCBeamSearcher`` of SpeechBrain. A batch is one call."""
    from speechbrain.decoders.ctc import CTCBeamSearcher

    searcher = CTCBeamSearcher(
        blank_index=0,
        vocab_list=["", "⁇", *labels[2:]],
        kenlm_model_path=lm,
        unigrams=words,
        alpha=lm_weight,
        beta=word_score,
        beam_size=beam_size,
    )

    def run(paths):
        log_probs_BFV, lengths_B = _padded(paths)
        return [best[0].text for best in searcher(log_probs_BFV, lengths_B / log_probs_BFV.shape[1])]

    return run


KINDS = {
    function.__name__: function
    for function in (
        ours_whisper,
        transformers_whisper,
        faster_whisper,
        ours_ctc,
        pyctcdecode,
        flashlight,
        speechbrain,
    )
}


def main():
    """Answer line by line. Anything that libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    run = KINDS[sys.argv[1]](**json.loads(sys.argv[2]))
    say("ready")
    for line in sys.stdin:
        paths = json.loads(line)
        began = time.perf_counter()
        texts = run(paths)
        seconds = time.perf_counter() - began
        say({"texts": texts, "seconds": seconds, "peak_gb": _peak_gb()})


def _peak_gb():
    """Peak memory of this process. `resource.getrusage` would include the parent's memory at the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    return 0.0


if __name__ == "__main__":
    main()
