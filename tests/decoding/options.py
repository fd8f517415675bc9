"""Settings of beam searches in tests: no language model, no pruning and no limits."""

FUSION = {
    "lm": None,
    "lm_unit": "word",
    "lm_weight": 0.5,
    "word_score": 0.0,
    "label_score": 0.0,
    "unknown_score": -10.0,
    "lexicon": None,
    "hotwords": [],
    "hotword_score": 0.5,
}
CTC_BEAM = {"beam_size": 16, "beam_threshold": None, "max_labels": None, "blank_collapse": None, "n_best": 1}
