"""CTC prefix beam search, batched over utterances and beams.

Shape suffixes in addition to `ssl_asr.types`:

    K    beams of an utterance; J and I if pairs of beams are compared
    S    steps: frames, or runs of blank frames
    C    candidate labels of a step
    N    scored candidates of a step: K beams that stay, K * C extensions, and one dummy entry
    R    hypotheses of an n-best list
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Int64s
from ssl_asr.decoding.fusion.tables import Fusion

# Finite stand-in for log 0, far below any log-probability. Sums of a few stand-ins are finite in float32.
_LOG_ZERO = -1e30
_HASH_FACTOR = 1_000_003


@dataclass(frozen=True, slots=True)
class CtcHypothesis:
    """A hypothesis of a CTC search.

    Attributes:
        tokens: Labels.
        frames: Frame in which each label begins.
        acoustic: Log-probability (natural logarithm) of all paths of the labels that the search kept.
        fused: Score added by shallow fusion.
        words: Words of a lexicon, each with its number of labels. None if the labels spell the words as written.
    """

    tokens: list[int]
    frames: list[int]
    acoustic: float
    fused: float
    words: tuple[tuple[str, int], ...] | None = None

    @property
    def score(self) -> float:
        """Score that hypotheses are ranked by."""
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
) -> list[list[CtcHypothesis]]:
    """Batched CTC prefix beam search (Hannun et al., 2014, arXiv:1408.2873), with optional shallow fusion.

    For each prefix ``l`` the search keeps two log-probabilities per frame ``t``::

        p_b(l, t)   all paths that collapse to l and end in blank
        p_n(l, t)   all paths that collapse to l and end in its last label

        stay:    p_b(l, t)    = y(blank, t) + logaddexp(p_b, p_n)(l, t-1)
                 p_n(l, t)    = y(l[-1], t) + p_n(l, t-1)
        extend:  p_n(l+c, t) += y(c, t) + (p_b(l, t-1) if c == l[-1] else logaddexp(p_b, p_n)(l, t-1))

    Beams are ranked by ``logaddexp(p_b, p_n) + fusion(l)``. No two beams have the same
    prefix, so a duplicate is always an extension that equals a beam that stays. If hash(parent of j) == hash(i), beam j
    absorbs the extension of beam i by l_j[-1]. Consecutive frames whose blank probability is at least
    ``blank_collapse`` are one step (blank collapse, arXiv:2210.17017).

    Args:
        log_probs_BFV: Float32 log-probabilities of shape (batch, frames, vocabulary). Minus infinity forbids a label.
        frame_lengths_B: Number of valid frames per utterance, int64, on the CPU.
        beam_size: Number of prefixes kept per step.
        blank: Id of the blank.
        fusion: Scores added for labels, or None.
        max_labels: Number of labels per step that extend prefixes, the most likely first, or None for all labels.
        blank_collapse: Lowest blank probability at which consecutive frames are one step, or None for no merging.
        beam_threshold: Largest difference from the best score. Prefixes below it are pruned. None for no threshold.
        n_best: Number of hypotheses returned, at most ``beam_size``.

    Returns:
        For each utterance, up to ``n_best`` hypotheses, best first. The list is never empty, but a text can be.
    """
    log_probs_BFV = log_probs_BFV.float().clamp(min=_LOG_ZERO)
    starts = _step_starts(log_probs_BFV[..., blank], frame_lengths_B, blank_collapse)
    if all(len(starts_S) == 0 for starts_S in starts):
        return [[CtcHypothesis([], [], 0.0, _fused_empty(fusion))] for _ in starts]
    inputs_BSV = _step_log_probs(log_probs_BFV, starts, frame_lengths_B, blank)
    search = _Search(inputs_BSV, beam_size, blank, fusion, max_labels, beam_threshold)
    beams = search.initial_beams()
    for step in range(search.steps):
        candidates = search.score_candidates(beams, step)
        merged = search.merge_duplicates(beams, candidates)
        beams = search.keep_best(beams, candidates, merged, step)
    return search.backtrace(beams, starts, n_best)


@dataclass(slots=True)
class _Beams:
    """The prefixes kept after a step.

    Attributes:
        p_b_BK, p_n_BK: ``p_b`` and ``p_n`` of each prefix, see `prefix_beam_search`.
        fused_BK, state_BK: Score of shallow fusion of each prefix, and the state of the fusion after it.
        last_BK: Last label of each prefix, -1 for the empty prefix.
        hash_BK, parent_hash_BK: Hash of each prefix, and of the prefix without its last label.
    """

    p_b_BK: Tensor
    p_n_BK: Tensor
    fused_BK: Tensor
    last_BK: Tensor
    hash_BK: Tensor
    parent_hash_BK: Tensor
    state_BK: Tensor


@dataclass(slots=True)
class _Candidates:
    """Candidates of a step: every beam that stays, and every beam extended by every candidate label.

    Attributes:
        total_BK: ``logaddexp(p_b, p_n)`` of each beam before the step.
        last_log_prob_BK: Log-probability of each beam's last label in the step.
        stay_p_b_BK, stay_p_n_BK: ``p_b`` and ``p_n`` of the beams that stay.
        labels_BC, extend_p_n_BKC: Candidate labels, and ``p_n`` of the beams extended by them.
        last_index_BK: Index of each beam's last label in the candidate list, C if the label is not a candidate.
        last_is_candidate_BK: Whether each beam has a last label that is a candidate.
    """

    total_BK: Tensor
    last_log_prob_BK: Tensor
    stay_p_b_BK: Tensor
    stay_p_n_BK: Tensor
    labels_BC: Tensor
    extend_p_n_BKC: Tensor
    last_index_BK: Tensor
    last_is_candidate_BK: Tensor


@dataclass(slots=True)
class _Merged:
    """The beams that stay, each with the duplicate extension that it absorbs.

    Attributes:
        stay_p_n_BK: ``p_n`` of the beams that stay, including the absorbed extensions.
        parent_BK: Parent of each beam. Arbitrary if the parent is no longer a beam.
        begins_BK: Whether the best time at which the last label of a beam begins is this step.
        absorbed_BK: Index of the absorbed extension in the K * C extensions, K * C for none.
    """

    stay_p_n_BK: Tensor
    parent_BK: Tensor
    begins_BK: Tensor
    absorbed_BK: Tensor


class _Search:
    """The steps of `prefix_beam_search`, and the tensors that are allocated once per search."""

    def __init__(
        self,
        inputs_BSV: Tensor,
        beam_size: int,
        blank: int,
        fusion: Fusion | None,
        max_labels: int | None,
        beam_threshold: float | None,
    ) -> None:
        batch, self.steps, size = inputs_BSV.shape
        device = inputs_BSV.device
        self.beam_size, self.blank, self.fusion, self.beam_threshold = beam_size, blank, fusion, beam_threshold
        self._inputs_BSV = inputs_BSV
        self._labels_BSC, self._log_probs_BSC = _step_candidates(inputs_BSV, blank, max_labels)
        self.width = width = self._labels_BSC.shape[-1]
        # Index of each label in the step's candidate list, or `width` if the label is not a candidate.
        self._candidate_index_BV = torch.empty(batch, size, dtype=torch.int64, device=device)
        self._positions_BC = torch.arange(width, device=device).expand(batch, -1)
        # Scores of all candidates: K beams that stay, K * C extensions, and a dummy entry that is always log 0.
        self._scores_BN = torch.empty(batch, beam_size + beam_size * width + 1, device=device)
        self._scores_BN[:, -1] = _LOG_ZERO
        self._extend_scores_BKC = self._scores_BN[:, beam_size:-1].view(batch, beam_size, width)
        # Pruned beams get a hash that matches no prefix, so no candidate can have them as a parent.
        self._no_hash_BK = (-2 - torch.arange(beam_size, device=device)).expand(batch, -1)
        # For the backtrace: parent of each beam in the previous step, and the label added in this step, or -1.
        self._parents_SBK = torch.empty(self.steps, batch, beam_size, dtype=torch.int64, device=device)
        self._added_SBK = torch.empty_like(self._parents_SBK)

    def initial_beams(self) -> _Beams:
        """The beams before the first step: the empty prefix, and pruned beams."""
        p_b_BK = torch.full(self._no_hash_BK.shape, _LOG_ZERO, device=self._no_hash_BK.device)
        p_b_BK[:, 0] = 0.0
        zeros_BK = torch.zeros_like(self._no_hash_BK)
        hash_BK = self._no_hash_BK.clone()
        hash_BK[:, 0] = 0
        return _Beams(
            p_b_BK=p_b_BK,
            p_n_BK=torch.full_like(p_b_BK, _LOG_ZERO),
            fused_BK=torch.zeros_like(p_b_BK),
            last_BK=zeros_BK - 1,
            hash_BK=hash_BK,
            parent_hash_BK=zeros_BK - 1,
            state_BK=zeros_BK if self.fusion is None else zeros_BK + self.fusion.begin(),
        )

    def score_candidates(self, beams: _Beams, step: int) -> _Candidates:
        """Log-probabilities of every beam that stays, and of every beam extended by every candidate label."""
        inputs_BV, labels_BC = self._inputs_BSV[:, step], self._labels_BSC[:, step]
        total_BK = torch.logaddexp(beams.p_b_BK, beams.p_n_BK)
        # The empty prefix has no last label. It reads label 0, and the result is masked.
        index_BK = beams.last_BK.clamp(min=0)
        last_log_prob_BK = inputs_BV.gather(1, index_BK)
        # Case 1, prefix unchanged: emit blank, or repeat the last label.
        stay_p_b_BK = total_BK + inputs_BV[:, self.blank, None]
        stay_p_n_BK = torch.where(beams.last_BK < 0, _LOG_ZERO, beams.p_n_BK + last_log_prob_BK)
        # Case 2, prefix extended by one label. A repeated label requires a blank in between.
        extend_p_n_BKC = total_BK[..., None] + self._log_probs_BSC[:, step, None]
        last_index_BK = (
            self._candidate_index_BV.fill_(self.width).scatter_(1, labels_BC, self._positions_BC).gather(1, index_BK)
        )
        last_is_candidate_BK = (beams.last_BK >= 0) & (last_index_BK < self.width)
        # If the last label is not a candidate, column 0 is overwritten with its own value.
        column_BK1 = last_index_BK.masked_fill(~last_is_candidate_BK, 0)[..., None]
        after_blank_BK = torch.where(last_is_candidate_BK, beams.p_b_BK + last_log_prob_BK, extend_p_n_BKC[..., 0])
        extend_p_n_BKC.scatter_(2, column_BK1, after_blank_BK[..., None])
        return _Candidates(
            total_BK,
            last_log_prob_BK,
            stay_p_b_BK,
            stay_p_n_BK,
            labels_BC,
            extend_p_n_BKC,
            last_index_BK,
            last_is_candidate_BK,
        )

    def merge_duplicates(self, beams: _Beams, candidates: _Candidates) -> _Merged:
        """Merge duplicates: the parent of a beam, extended by the last label of the beam, is the same prefix."""
        same_BJI = beams.parent_hash_BK[..., None] == beams.hash_BK[:, None]
        has_parent_BJ, parent_BJ = same_BJI.max(-1)
        repeated_BJ = beams.last_BK.gather(1, parent_BJ) == beams.last_BK
        parent_total_BJ = torch.where(
            repeated_BJ, beams.p_b_BK.gather(1, parent_BJ), candidates.total_BK.gather(1, parent_BJ)
        )
        extended_BJ = torch.where(has_parent_BJ, parent_total_BJ + candidates.last_log_prob_BK, 2 * _LOG_ZERO)
        # The last label begins in this step if the parent's extension is more probable than the beam that stays.
        begins_BJ = extended_BJ > torch.logaddexp(candidates.stay_p_b_BK, candidates.stay_p_n_BK)
        absorbed_BJ = torch.where(
            has_parent_BJ & candidates.last_is_candidate_BK,
            parent_BJ * self.width + candidates.last_index_BK,
            self.beam_size * self.width,
        )
        stay_p_n_BJ = torch.logaddexp(candidates.stay_p_n_BK, extended_BJ)
        return _Merged(stay_p_n_BJ, parent_BJ, begins_BJ, absorbed_BJ)

    def keep_best(self, beams: _Beams, candidates: _Candidates, merged: _Merged, step: int) -> _Beams:
        """Returns the best candidates as the next beams. Stores their parents and labels for the backtrace."""
        extend_fused_BKC = self._fill_scores(beams, candidates, merged)
        scores_BK, index_BK = self._scores_BN.topk(self.beam_size, dim=1)
        stays_BK = index_BK < self.beam_size
        # The index of the dummy entry is clamped. Its score is log 0, so the beam is pruned below.
        extension_BK = (index_BK - self.beam_size).clamp(min=0, max=self.beam_size * self.width - 1)
        parent_BK = torch.where(stays_BK, index_BK, extension_BK.div(self.width, rounding_mode="floor"))
        added_BK = torch.where(stays_BK, -1, candidates.labels_BC.gather(1, extension_BK % self.width))
        extend_p_n_BK = candidates.extend_p_n_BKC.flatten(1).gather(1, extension_BK)
        p_b_BK = torch.where(stays_BK, candidates.stay_p_b_BK.gather(1, parent_BK), _LOG_ZERO)
        p_n_BK = torch.where(stays_BK, merged.stay_p_n_BK.gather(1, parent_BK), extend_p_n_BK)
        last_BK = torch.where(stays_BK, beams.last_BK.gather(1, parent_BK), added_BK)
        fused_BK = beams.fused_BK.gather(1, parent_BK)
        if extend_fused_BKC is not None:
            fused_BK = torch.where(stays_BK, fused_BK, extend_fused_BKC.flatten(1).gather(1, extension_BK))
        hash_BK = beams.hash_BK.gather(1, parent_BK)
        parent_hash_BK = torch.where(stays_BK, beams.parent_hash_BK.gather(1, parent_BK), hash_BK)
        hash_BK = torch.where(stays_BK, hash_BK, (hash_BK + added_BK + 2) * _HASH_FACTOR)
        # Prune. A pruned beam loses its hash, so that it cannot be a parent.
        pruned_BK = scores_BK < self._floor(scores_BK)
        state_BK = beams.state_BK
        if self.fusion is not None:
            state_BK = self.fusion.nexts(state_BK.gather(1, parent_BK), added_BK.masked_fill(pruned_BK, -1))
        begins_BK = stays_BK & merged.begins_BK.gather(1, parent_BK)
        self._parents_SBK[step] = torch.where(begins_BK, merged.parent_BK.gather(1, parent_BK), parent_BK)
        self._added_SBK[step] = torch.where(begins_BK, last_BK, added_BK)
        return _Beams(
            p_b_BK=p_b_BK.masked_fill(pruned_BK, _LOG_ZERO),
            p_n_BK=p_n_BK.masked_fill(pruned_BK, _LOG_ZERO),
            fused_BK=fused_BK,
            last_BK=last_BK,
            hash_BK=torch.where(pruned_BK, self._no_hash_BK, hash_BK),
            parent_hash_BK=parent_hash_BK.masked_fill(pruned_BK, -1),
            state_BK=state_BK,
        )

    def _fill_scores(self, beams: _Beams, candidates: _Candidates, merged: _Merged) -> Tensor | None:
        """Fills ``_scores_BN``. Returns the fused scores of the extensions, or None without fusion."""
        stay_BK = torch.logaddexp(candidates.stay_p_b_BK, merged.stay_p_n_BK)
        torch.add(stay_BK, beams.fused_BK, out=self._scores_BN[:, : self.beam_size])
        extend_fused_BKC = None
        if self.fusion is None:
            torch.add(candidates.extend_p_n_BKC, beams.fused_BK[..., None], out=self._extend_scores_BKC)
        else:
            labels_BKC = candidates.labels_BC[:, None].expand(-1, self.beam_size, -1)
            extend_fused_BKC = self.fusion.rows(beams.state_BK).gather(2, labels_BKC) + beams.fused_BK[..., None]
            torch.add(candidates.extend_p_n_BKC, extend_fused_BKC, out=self._extend_scores_BKC)
        # Remove absorbed extensions. Beams that absorb nothing overwrite the dummy entry.
        self._scores_BN[:, self.beam_size :].scatter_(1, merged.absorbed_BK, _LOG_ZERO)
        return extend_fused_BKC

    def _floor(self, scores_BK: Tensor) -> Tensor | float:
        """Score below which beams are pruned."""
        if self.beam_threshold is None:
            return _LOG_ZERO / 2
        return (scores_BK[:, :1] - self.beam_threshold).clamp(min=_LOG_ZERO / 2)

    def backtrace(self, beams: _Beams, starts: list[Int64s], n_best: int) -> list[list[CtcHypothesis]]:
        """Returns the n-best list of each utterance. Labels are read from the last step to the first."""
        acoustic_BK, fused_BK = torch.logaddexp(beams.p_b_BK, beams.p_n_BK), beams.fused_BK
        if self.fusion is not None:
            fused_at_end_BK = fused_BK + self.fusion.ends(beams.state_BK)
            # If the fusion allows no prefix to end, return unfinished prefixes instead of an empty list.
            may_end_B1 = ((acoustic_BK + fused_at_end_BK) > _LOG_ZERO / 2).any(1, keepdim=True)
            fused_BK = torch.where(may_end_B1, fused_at_end_BK, fused_BK)
        best = (acoustic_BK + fused_BK).clamp(min=_LOG_ZERO).topk(min(n_best, self.beam_size), dim=1)
        parents_SBK, added_SBK = self._parents_SBK.cpu().numpy(), self._added_SBK.cpu().numpy()
        beam_BR = best.indices.cpu().numpy()
        rows_B1 = np.arange(len(beam_BR))[:, None]
        path_SBR = np.empty((self.steps, *beam_BR.shape), dtype=np.int64)
        for step in range(self.steps - 1, -1, -1):
            path_SBR[step] = added_SBK[step][rows_B1, beam_BR]
            beam_BR = parents_SBK[step][rows_B1, beam_BR]
        scores = zip(*(x.gather(1, best.indices).tolist() for x in (acoustic_BK, fused_BK)), strict=True)
        results = []
        for row, (acoustic_R, fused_R) in enumerate(scores):
            hypotheses = []
            for n, score in enumerate(best.values[row].tolist()):
                if n > 0 and score <= _LOG_ZERO / 2:
                    break
                steps = np.flatnonzero(path_SBR[:, row, n] >= 0)
                tokens, frames = path_SBR[steps, row, n].tolist(), starts[row][steps].tolist()
                hypotheses.append(CtcHypothesis(tokens, frames, acoustic_R[n], fused_R[n]))
            results.append(hypotheses)
        return results


def _fused_empty(fusion: Fusion | None) -> float:
    """Fused score of the empty text."""
    return 0.0 if fusion is None else float(fusion.ends(torch.tensor(fusion.begin(), device=fusion.device)))


def _step_starts(blank_log_prob_BF: Tensor, frame_lengths_B: Tensor, threshold: float | None) -> list[Int64s]:
    """First frame of each step. Consecutive frames with a blank probability of at least ``threshold`` are one step."""
    if threshold is None:
        return [np.arange(frames) for frames in frame_lengths_B.tolist()]
    is_blank_BF = (blank_log_prob_BF.exp() >= threshold).cpu().numpy()
    starts = []
    for row, frames in enumerate(frame_lengths_B.tolist()):
        is_blank = is_blank_BF[row, :frames]
        continues_run = np.zeros(frames, dtype=bool)
        continues_run[1:] = is_blank[1:] & is_blank[:-1]
        starts.append(np.flatnonzero(~continues_run))
    return starts


def _step_log_probs(log_probs_BFV: Tensor, starts: list[Int64s], frame_lengths_B: Tensor, blank: int) -> Tensor:
    """Log-probabilities of each step, ``inputs_BSV``. In padding steps, blank has probability 1, so no beam changes."""
    batch, frames, size = log_probs_BFV.shape
    device = log_probs_BFV.device
    lengths_B = torch.tensor([len(starts_S) for starts_S in starts])
    steps = int(lengths_B.max())
    if torch.equal(lengths_B, frame_lengths_B):
        inputs_BSV = log_probs_BFV[:, :steps].clone()
    else:
        # Sum the log-probabilities over the frames of each step. Padding frames go to an extra step, which is cut off.
        step_index_BF = np.full((batch, frames), steps)
        for row, (starts_S, count) in enumerate(zip(starts, frame_lengths_B.tolist(), strict=True)):
            begins = np.zeros(count, dtype=np.int64)
            begins[starts_S] = 1
            step_index_BF[row, :count] = begins.cumsum() - 1
        index_BF = torch.from_numpy(step_index_BF).to(device)
        summed = log_probs_BFV.new_zeros(batch, steps + 1, size)
        inputs_BSV = summed.scatter_add_(1, index_BF[..., None].expand(-1, -1, size), log_probs_BFV)[:, :steps]
        inputs_BSV = inputs_BSV.clamp(min=_LOG_ZERO)
    is_padding_BS = (torch.arange(steps) >= lengths_B[:, None]).to(device)
    inputs_BSV = inputs_BSV.masked_fill(is_padding_BS[..., None], _LOG_ZERO)
    inputs_BSV[..., blank] = inputs_BSV[..., blank].masked_fill(is_padding_BS, 0.0)
    return inputs_BSV


def _step_candidates(inputs_BSV: Tensor, blank: int, max_labels: int | None) -> tuple[Tensor, Tensor]:
    """Labels that extend prefixes at each step, and their log-probabilities, without the blank."""
    batch, steps, size = inputs_BSV.shape
    if max_labels is not None and max_labels < size - 1:
        without_blank_BSV = inputs_BSV.clone()
        without_blank_BSV[..., blank] = 2 * _LOG_ZERO
        best = without_blank_BSV.topk(max_labels, dim=-1)
        return best.indices, best.values
    labels_C = torch.tensor([i for i in range(size) if i != blank], device=inputs_BSV.device)
    return labels_C.expand(batch, steps, -1), inputs_BSV[..., labels_C]
