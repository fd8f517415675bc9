"""CTC prefix beam search, for a batch of utterances and all their beams at once.

A prefix's probability is the sum over the paths that spell it (Graves et al., 2006; Hannun et al., 2014,
arXiv:1408.2873). Prefixes in a beam differ, so within a frame two candidates can only be the same where a beam's label
has just been added to the beam's own parent: that is found by comparing hashes of prefixes, and no dictionary is
needed. Frames that are blank almost surely are run together beforehand (blank collapse, arXiv:2210.17017).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.fusion import Fusion

# Above float64's precision and far below any log-probability: adding to it stays finite, unlike with infinity.
_NEVER = -1e30
_PRIME = 1_000_003


@dataclass(frozen=True, slots=True)
class Found:
    """A prefix that a search found.

    Attributes:
        tokens: its labels.
        frames: the frame that each was begun in.
        acoustic: log-probability of all its paths that were kept (natural logarithm).
        fused: what language models and the like add.
        words: where a lexicon says how words are spelt: each, and how many of the labels spell it.
    """

    tokens: list[int]
    frames: list[int]
    acoustic: float
    fused: float
    words: tuple[tuple[str, int], ...] | None = None

    @property
    def score(self) -> float:
        """What it was ranked by."""
        return self.acoustic + self.fused


def prefix_beam_search(
    log_probs_BFV: Tensor,
    frame_lengths_B: Tensor,
    *,
    beam_size: int,
    blank: int,
    fusion: Fusion | None,
    max_labels: int | None,
    blank_collapse: float | None,
    beam_threshold: float | None,
    n_best: int,
) -> list[list[Found]]:
    """The best prefixes of each utterance, best first.

    Args:
        log_probs_BFV: log-probabilities, float32; labels that must not be written have minus infinity.
        frame_lengths_B: int64 on the CPU.
        beam_size: prefixes kept in a frame.
        blank: its id.
        fusion: what is added to labels; None for nothing.
        max_labels: only so many of a frame's likeliest labels are tried; None tries all.
        blank_collapse: frames whose blank is at least so probable are run together; None for none.
        beam_threshold: prefixes that are so much worse than the best are dropped; None drops none.
        n_best: prefixes returned, at most ``beam_size``.
    """
    batch, _, size = log_probs_BFV.shape
    device = log_probs_BFV.device
    log_probs_BFV = log_probs_BFV.float().clamp(min=_NEVER)
    kept, kept_lengths_B = _collapse(log_probs_BFV[..., blank], frame_lengths_B, blank_collapse)
    steps = int(kept_lengths_B.max()) if batch else 0
    if steps == 0:
        return [[Found([], [], 0.0, 0.0 if fusion is None else _end_of_nothing(fusion, device))] for _ in range(batch)]
    inputs_BSV = _gathered(log_probs_BFV, kept, kept_lengths_B, frame_lengths_B, blank, steps)
    labels_BSC, labels_log_probs_BSC = _candidates(inputs_BSV, blank, max_labels)
    width = labels_BSC.shape[-1]
    # Where a label stands among a step's candidates, and what is no place where it is none of them.
    order_BC = torch.arange(width, device=device).expand(batch, -1)
    places_BV = torch.empty(batch, size, dtype=torch.int64, device=device)

    zeros_BK = torch.zeros(batch, beam_size, dtype=torch.int64, device=device)
    blank_BK = torch.full((batch, beam_size), _NEVER, device=device)
    blank_BK[:, 0] = 0.0
    label_BK = torch.full_like(blank_BK, _NEVER)
    fused_BK = torch.zeros_like(blank_BK)
    last_BK = zeros_BK - 1
    state_BK = zeros_BK if fusion is None else zeros_BK + fusion.begin()
    # A beam that is out of the question is nobody's parent: its hash is like no prefix's.
    nobody_BK = zeros_BK - 2 - torch.arange(beam_size, device=device)
    hash_BK, parent_hash_BK = nobody_BK.clone(), zeros_BK - 1
    hash_BK[:, 0] = 0
    parents_SBK = torch.empty(steps, batch, beam_size, dtype=torch.int64, device=device)
    added_SBK = torch.empty_like(parents_SBK)
    candidates_BN = torch.empty(batch, beam_size + beam_size * width + 1, device=device)
    extended_BKC = candidates_BN[:, beam_size:-1].view(batch, beam_size, width)

    for step in range(steps):
        inputs_BV = inputs_BSV[:, step]
        labels_BC, labels_log_probs_BC = labels_BSC[:, step], labels_log_probs_BSC[:, step]
        total_BK = torch.logaddexp(blank_BK, label_BK)
        last_log_prob_BK = inputs_BV.gather(1, last_BK.clamp(min=0))
        # As it is: a blank, or its last label still sounding.
        stay_blank_BK = total_BK + inputs_BV[:, blank, None]
        stay_label_BK = torch.where(last_BK < 0, _NEVER, label_BK + last_log_prob_BK)
        # By a label: its own last one only after a blank.
        repeated_BK = places_BV.fill_(width).scatter_(1, labels_BC, order_BC).gather(1, last_BK.clamp(min=0))
        repeats_BK = (last_BK >= 0) & (repeated_BK < width)
        acoustic_BKC = total_BK[..., None] + labels_log_probs_BC[:, None]
        at_BK1 = repeated_BK.masked_fill(~repeats_BK, 0)[..., None]
        after_blank_BK = torch.where(repeats_BK, blank_BK + last_log_prob_BK, acoustic_BKC[..., 0])
        acoustic_BKC.scatter_(2, at_BK1, after_blank_BK[..., None])
        # What is the same prefix: beam j, and its parent i with j's last label.
        same_BJI = parent_hash_BK[..., None] == hash_BK[:, None]
        has_BJ, parent_BJ = same_BJI.max(-1)
        parent_last_BJ = last_BK.gather(1, parent_BJ)
        from_parent_BJ = torch.where(
            parent_last_BJ == last_BK, blank_BK.gather(1, parent_BJ), total_BK.gather(1, parent_BJ)
        )
        from_parent_BJ = torch.where(has_BJ, from_parent_BJ + last_log_prob_BK, 2 * _NEVER)
        # Where most of a prefix's probability now comes from its parent, its last label begins here.
        begins_BJ = from_parent_BJ > torch.logaddexp(stay_blank_BK, stay_label_BK)
        stay_label_BK = torch.logaddexp(stay_label_BK, from_parent_BJ)
        place_BJ = torch.where(has_BJ & repeats_BK, parent_BJ * width + repeated_BK, beam_size * width)

        stay_BK = torch.logaddexp(stay_blank_BK, stay_label_BK)
        torch.add(stay_BK, fused_BK, out=candidates_BN[:, :beam_size])
        if fusion is None:
            torch.add(acoustic_BKC, fused_BK[..., None], out=extended_BKC)
        else:
            gains_BKV = fusion.rows(state_BK)
            gains_BKC = gains_BKV.gather(2, labels_BC[:, None].expand(-1, beam_size, -1)) + fused_BK[..., None]
            torch.add(acoustic_BKC, gains_BKC, out=extended_BKC)
        candidates_BN[:, beam_size:].scatter_(1, place_BJ, _NEVER)
        candidates_BN[:, -1] = _NEVER
        best = candidates_BN.topk(beam_size, dim=1)
        stays_BK = best.indices < beam_size
        # The last place takes what is struck out: where nothing else is left, it is no beam at all.
        place_BK = (best.indices - beam_size).clamp(min=0, max=beam_size * width - 1)
        parent_BK = torch.where(stays_BK, best.indices, place_BK.div(width, rounding_mode="floor"))
        token_BK = torch.where(stays_BK, -1, labels_BC.gather(1, place_BK % width))
        grown_BK = acoustic_BKC.flatten(1).gather(1, place_BK)
        fused_after_BK = fused_BK.gather(1, parent_BK)
        if fusion is not None:
            fused_after_BK = torch.where(stays_BK, fused_after_BK, gains_BKC.flatten(1).gather(1, place_BK))
        blank_BK = torch.where(stays_BK, stay_blank_BK.gather(1, parent_BK), _NEVER)
        label_BK = torch.where(stays_BK, stay_label_BK.gather(1, parent_BK), grown_BK)
        hash_before_BK = hash_BK.gather(1, parent_BK)
        parent_hash_BK = torch.where(stays_BK, parent_hash_BK.gather(1, parent_BK), hash_before_BK)
        hash_BK = torch.where(stays_BK, hash_before_BK, (hash_before_BK + token_BK + 2) * _PRIME)
        last_BK = torch.where(stays_BK, last_BK.gather(1, parent_BK), token_BK)
        fused_BK = fused_after_BK
        # A prefix that is out of the question must not have children either.
        floor_B1 = _NEVER / 2 if beam_threshold is None else (best.values[:, :1] - beam_threshold).clamp(min=_NEVER / 2)
        dropped_BK = best.values < floor_B1
        blank_BK, label_BK = blank_BK.masked_fill(dropped_BK, _NEVER), label_BK.masked_fill(dropped_BK, _NEVER)
        hash_BK = torch.where(dropped_BK, nobody_BK, hash_BK)
        parent_hash_BK = parent_hash_BK.masked_fill(dropped_BK, -1)
        if fusion is not None:
            token_of_state_BK = token_BK.masked_fill(dropped_BK, -1)
            state_BK = fusion.nexts(state_BK.gather(1, parent_BK), token_of_state_BK)
        begins_BK = stays_BK & begins_BJ.gather(1, parent_BK)
        parents_SBK[step] = torch.where(begins_BK, parent_BJ.gather(1, parent_BK), parent_BK)
        added_SBK[step] = torch.where(begins_BK, last_BK, token_BK)
    acoustic_BK = torch.logaddexp(blank_BK, label_BK)
    if fusion is not None:
        ended_BK = fused_BK + fusion.ends(state_BK)
        # Where no prefix may end here, one that has not ended is better than none.
        may_end_B1 = ((acoustic_BK + ended_BK) > _NEVER / 2).any(1, keepdim=True)
        fused_BK = torch.where(may_end_B1, ended_BK, fused_BK)
    ranked = (acoustic_BK + fused_BK).clamp(min=_NEVER).topk(min(n_best, beam_size), dim=1)
    return _traced(parents_SBK, added_SBK, kept, acoustic_BK, fused_BK, ranked.values, ranked.indices)


def _end_of_nothing(fusion: Fusion, device: torch.device) -> float:
    return float(fusion.ends(torch.tensor(fusion.begin(), device=device)))


def _collapse(
    blank_log_prob_BF: Tensor, frame_lengths_B: Tensor, least: float | None
) -> tuple[list[np.ndarray], Tensor]:
    """For each utterance the runs of frames that are one step, as where each begins, and their number."""
    if least is None:
        starts = [np.arange(frames) for frames in frame_lengths_B.tolist()]
    else:
        silent_BF = (blank_log_prob_BF.exp() >= least).cpu().numpy()
        starts = []
        for row, frames in enumerate(frame_lengths_B.tolist()):
            silent = silent_BF[row, :frames]
            continues = np.zeros(frames, dtype=bool)
            continues[1:] = silent[1:] & silent[:-1]
            starts.append(np.flatnonzero(~continues))
    return starts, torch.tensor([len(own) for own in starts])


def _gathered(
    log_probs_BFV: Tensor,
    starts: list[np.ndarray],
    lengths_B: Tensor,
    frame_lengths_B: Tensor,
    blank: int,
    steps: int,
) -> Tensor:
    """The log-probabilities of each step; what lies beyond an utterance changes nothing: a sure blank."""
    batch, frames, size = log_probs_BFV.shape
    device = log_probs_BFV.device
    if all(len(own) == count for own, count in zip(starts, frame_lengths_B.tolist(), strict=True)):
        inputs_BSV = log_probs_BFV[:, :steps].clone()
    else:
        # A run's log-probabilities are the sums over it.
        step_of_BF = np.full((batch, frames), steps)
        for row, (own, count) in enumerate(zip(starts, frame_lengths_B.tolist(), strict=True)):
            begins = np.zeros(count, dtype=np.int64)
            begins[own] = 1
            step_of_BF[row, :count] = begins.cumsum() - 1
        index_BF = torch.from_numpy(step_of_BF).to(device)
        summed = log_probs_BFV.new_zeros(batch, steps + 1, size)
        inputs_BSV = summed.scatter_add_(1, index_BF[..., None].expand(-1, -1, size), log_probs_BFV)[:, :steps]
        inputs_BSV = inputs_BSV.clamp(min=_NEVER)
    beyond_BS = (torch.arange(steps) >= lengths_B[:, None]).to(device)
    inputs_BSV = inputs_BSV.masked_fill(beyond_BS[..., None], _NEVER)
    inputs_BSV[..., blank] = inputs_BSV[..., blank].masked_fill(beyond_BS, 0.0)
    return inputs_BSV


def _candidates(inputs_BSV: Tensor, blank: int, most: int | None) -> tuple[Tensor, Tensor]:
    """The labels tried at each step, and their log-probabilities; never the blank."""
    batch, steps, size = inputs_BSV.shape
    if most is not None and most < size - 1:
        without_BSV = inputs_BSV.clone()
        without_BSV[..., blank] = 2 * _NEVER
        best = without_BSV.topk(most, dim=-1)
        return best.indices, best.values
    labels_C = torch.tensor([i for i in range(size) if i != blank], device=inputs_BSV.device)
    return labels_C.expand(batch, steps, -1), inputs_BSV[..., labels_C]


def _traced(
    parents_SBK: Tensor,
    added_SBK: Tensor,
    starts: list[np.ndarray],
    acoustic_BK: Tensor,
    fused_BK: Tensor,
    scores_BN: Tensor,
    beams_BN: Tensor,
) -> list[list[Found]]:
    """The prefixes of the chosen beams, read back from the end."""
    parents, added = parents_SBK.cpu().numpy(), added_SBK.cpu().numpy()
    steps, batch, _ = parents.shape
    beams, scores = beams_BN.cpu().numpy(), scores_BN.cpu().numpy()
    at = beams.copy()
    rows = np.arange(batch)[:, None]
    path_SBN = np.empty((steps, *beams.shape), dtype=np.int64)
    for step in range(steps - 1, -1, -1):
        path_SBN[step] = added[step][rows, at]
        at = parents[step][rows, at]
    acoustic = acoustic_BK.gather(1, beams_BN).cpu().numpy()
    fused = fused_BK.gather(1, beams_BN).cpu().numpy()
    results = []
    for row in range(batch):
        found = []
        for n in range(beams.shape[1]):
            if n > 0 and scores[row, n] <= _NEVER / 2:
                break
            places = np.flatnonzero(path_SBN[:, row, n] >= 0)
            frames = starts[row][places].tolist()
            tokens = path_SBN[places, row, n].tolist()
            found.append(Found(tokens, frames, float(acoustic[row, n]), float(fused[row, n])))
        results.append(found)
    return results
