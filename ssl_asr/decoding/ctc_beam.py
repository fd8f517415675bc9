"""CTC prefix beam search, batched over utterances and beams.

Shape suffixes besides those of `ssl_asr.types`: K beams of an utterance (J and I where pairs of beams are compared), S
steps (frames, or runs of blank frames), C candidate labels of a step, N all candidates of an utterance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.ngram import Int64s

# Stand-in for log 0: above float64's resolution, far below any log-probability, and finite when something is added.
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

    Beams are ranked by ``logaddexp(p_b, p_n) + fusion(l)``. All beams differ, so only an extended beam can equal a beam
    that stays: beam j absorbs beam i extended by l_j[-1] if hash(parent of j) == hash(i). A run of frames with a sure
    blank is one step (blank collapse, arXiv:2210.17017).

    Args:
        log_probs_BFV: Float32 log-probabilities of shape (batch, frames, vocabulary). Minus infinity forbids a label.
        frame_lengths_B: Number of valid frames per utterance, int64, on the CPU.
        beam_size: Number of prefixes kept per step.
        blank: Id of the blank.
        fusion: Scores added for labels, or None.
        max_labels: Number of the most likely labels of a step that extend prefixes, or None for all.
        blank_collapse: Blank probability from which consecutive frames are one step, or None for no merging.
        beam_threshold: Prefixes that score lower than the best by more than this are pruned, or None for no pruning.
        n_best: Number of hypotheses returned, at most ``beam_size``.

    Returns:
        For each utterance, up to ``n_best`` hypotheses, best first. There is at least one; it may be empty.
    """
    log_probs_BFV = log_probs_BFV.float().clamp(min=_LOG_ZERO)
    starts = _step_starts(log_probs_BFV[..., blank], frame_lengths_B, blank_collapse)
    if all(len(own) == 0 for own in starts):
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
        blank_BK, label_BK: ``p_b`` and ``p_n`` of each prefix.
        fused_BK, state_BK: Fused score of each prefix, and the state of the fusion.
        last_BK: Last label, -1 for the empty prefix.
        hash_BK, parent_hash_BK: Hash of each prefix, and of the prefix without its last label.
    """

    blank_BK: Tensor
    label_BK: Tensor
    fused_BK: Tensor
    last_BK: Tensor
    hash_BK: Tensor
    parent_hash_BK: Tensor
    state_BK: Tensor


@dataclass(slots=True)
class _Candidates:
    """The log-probabilities of a step: every beam that stays, and every beam extended by every candidate label.

    Attributes:
        total_BK: ``logaddexp(p_b, p_n)`` of each beam before the step.
        last_log_prob_BK: Log-probability of each beam's last label in the step.
        stay_blank_BK, stay_label_BK: ``p_b`` and ``p_n`` of the beams that stay.
        labels_BC, extend_BKC: Candidate labels, and ``p_n`` of the beams extended by them.
        last_index_BK, can_repeat_BK: Index of each beam's last label among the candidates, and whether there is one.
    """

    total_BK: Tensor
    last_log_prob_BK: Tensor
    stay_blank_BK: Tensor
    stay_label_BK: Tensor
    labels_BC: Tensor
    extend_BKC: Tensor
    last_index_BK: Tensor
    can_repeat_BK: Tensor


@dataclass(slots=True)
class _Merged:
    """Beams that absorb their parent's extension by their own last label, which is the same prefix.

    Attributes:
        stay_label_BK: ``p_n`` of the beams that stay, the absorbed extensions included.
        parent_BK: Parent of each beam. Arbitrary if the parent is no longer a beam.
        begins_BK: Whether the last label of a beam now begins in this step.
        absorbed_BK: Index of the absorbed extension among all extensions, K * C for none.
    """

    stay_label_BK: Tensor
    parent_BK: Tensor
    begins_BK: Tensor
    absorbed_BK: Tensor


class _Search:
    """The steps of `prefix_beam_search`, and the tensors that are allocated once for all of them."""

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
        self._index_BV = torch.empty(batch, size, dtype=torch.int64, device=device)
        self._order_BC = torch.arange(width, device=device).expand(batch, -1)
        # Scores of all candidates: K beams as they are, K * C extensions, and a last place that stays log 0.
        self._scores_BN = torch.empty(batch, beam_size + beam_size * width + 1, device=device)
        self._scores_BN[:, -1] = _LOG_ZERO
        self._extend_scores_BKC = self._scores_BN[:, beam_size:-1].view(batch, beam_size, width)
        # Pruned beams get a hash that matches no prefix, so no candidate can have them as a parent.
        self._no_hash_BK = (-2 - torch.arange(beam_size, device=device)).expand(batch, -1)
        # For the backtrace: parent of each beam, and the label that it adds in this step, or -1.
        self._parents_SBK = torch.empty(self.steps, batch, beam_size, dtype=torch.int64, device=device)
        self._added_SBK = torch.empty_like(self._parents_SBK)

    def initial_beams(self) -> _Beams:
        """The empty prefix in the first beam; the other beams are pruned."""
        blank_BK = torch.full(self._no_hash_BK.shape, _LOG_ZERO, device=self._no_hash_BK.device)
        blank_BK[:, 0] = 0.0
        zeros_BK = torch.zeros_like(self._no_hash_BK)
        hash_BK = self._no_hash_BK.clone()
        hash_BK[:, 0] = 0
        return _Beams(
            blank_BK=blank_BK,
            label_BK=torch.full_like(blank_BK, _LOG_ZERO),
            fused_BK=torch.zeros_like(blank_BK),
            last_BK=zeros_BK - 1,
            hash_BK=hash_BK,
            parent_hash_BK=zeros_BK - 1,
            state_BK=zeros_BK if self.fusion is None else zeros_BK + self.fusion.begin(),
        )

    def score_candidates(self, beams: _Beams, step: int) -> _Candidates:
        """Log-probabilities of every beam that stays, and of every beam extended by every candidate label."""
        inputs_BV, labels_BC = self._inputs_BSV[:, step], self._labels_BSC[:, step]
        total_BK = torch.logaddexp(beams.blank_BK, beams.label_BK)
        last_BK = beams.last_BK.clamp(min=0)
        last_log_prob_BK = inputs_BV.gather(1, last_BK)
        # Case 1, prefix unchanged: emit blank, or repeat the last label.
        stay_blank_BK = total_BK + inputs_BV[:, self.blank, None]
        stay_label_BK = torch.where(beams.last_BK < 0, _LOG_ZERO, beams.label_BK + last_log_prob_BK)
        # Case 2, prefix extended by one label. A repeated label requires a blank in between.
        extend_BKC = total_BK[..., None] + self._log_probs_BSC[:, step, None]
        last_index_BK = self._index_BV.fill_(self.width).scatter_(1, labels_BC, self._order_BC).gather(1, last_BK)
        can_repeat_BK = (beams.last_BK >= 0) & (last_index_BK < self.width)
        # Beams whose last label is no candidate write their first column back unchanged.
        column_BK1 = last_index_BK.masked_fill(~can_repeat_BK, 0)[..., None]
        after_blank_BK = torch.where(can_repeat_BK, beams.blank_BK + last_log_prob_BK, extend_BKC[..., 0])
        extend_BKC.scatter_(2, column_BK1, after_blank_BK[..., None])
        return _Candidates(
            total_BK,
            last_log_prob_BK,
            stay_blank_BK,
            stay_label_BK,
            labels_BC,
            extend_BKC,
            last_index_BK,
            can_repeat_BK,
        )

    def merge_duplicates(self, beams: _Beams, candidates: _Candidates) -> _Merged:
        """Add to each beam its parent's extension by the beam's last label, which is the same prefix."""
        same_BJI = beams.parent_hash_BK[..., None] == beams.hash_BK[:, None]
        has_parent_BJ, parent_BJ = same_BJI.max(-1)
        repeated_BJ = beams.last_BK.gather(1, parent_BJ) == beams.last_BK
        parent_total_BJ = torch.where(
            repeated_BJ, beams.blank_BK.gather(1, parent_BJ), candidates.total_BK.gather(1, parent_BJ)
        )
        extended_BJ = torch.where(has_parent_BJ, parent_total_BJ + candidates.last_log_prob_BK, 2 * _LOG_ZERO)
        # If most of the probability now comes from the parent, the last label begins in this step.
        begins_BJ = extended_BJ > torch.logaddexp(candidates.stay_blank_BK, candidates.stay_label_BK)
        absorbed_BJ = torch.where(
            has_parent_BJ & candidates.can_repeat_BK,
            parent_BJ * self.width + candidates.last_index_BK,
            self.beam_size * self.width,
        )
        stay_label_BJ = torch.logaddexp(candidates.stay_label_BK, extended_BJ)
        return _Merged(stay_label_BJ, parent_BJ, begins_BJ, absorbed_BJ)

    def keep_best(self, beams: _Beams, candidates: _Candidates, merged: _Merged, step: int) -> _Beams:
        """The best candidates as the next beams. Stores their parents and labels for the backtrace."""
        extend_fused_BKC = self._rank(beams, candidates, merged)
        scores_BK, index_BK = self._scores_BN.topk(self.beam_size, dim=1)
        stays_BK = index_BK < self.beam_size
        # The last place is no beam: its score is log 0, so it is pruned below.
        place_BK = (index_BK - self.beam_size).clamp(min=0, max=self.beam_size * self.width - 1)
        parent_BK = torch.where(stays_BK, index_BK, place_BK.div(self.width, rounding_mode="floor"))
        token_BK = torch.where(stays_BK, -1, candidates.labels_BC.gather(1, place_BK % self.width))
        extend_BK = candidates.extend_BKC.flatten(1).gather(1, place_BK)
        blank_BK = torch.where(stays_BK, candidates.stay_blank_BK.gather(1, parent_BK), _LOG_ZERO)
        label_BK = torch.where(stays_BK, merged.stay_label_BK.gather(1, parent_BK), extend_BK)
        last_BK = torch.where(stays_BK, beams.last_BK.gather(1, parent_BK), token_BK)
        fused_BK = beams.fused_BK.gather(1, parent_BK)
        if extend_fused_BKC is not None:
            fused_BK = torch.where(stays_BK, fused_BK, extend_fused_BKC.flatten(1).gather(1, place_BK))
        hash_BK = beams.hash_BK.gather(1, parent_BK)
        parent_hash_BK = torch.where(stays_BK, beams.parent_hash_BK.gather(1, parent_BK), hash_BK)
        hash_BK = torch.where(stays_BK, hash_BK, (hash_BK + token_BK + 2) * _HASH_FACTOR)
        # Prune. A pruned beam must not have children either, so it loses its hash.
        pruned_BK = scores_BK < self._floor(scores_BK)
        state_BK = beams.state_BK
        if self.fusion is not None:
            state_BK = self.fusion.nexts(state_BK.gather(1, parent_BK), token_BK.masked_fill(pruned_BK, -1))
        begins_BK = stays_BK & merged.begins_BK.gather(1, parent_BK)
        self._parents_SBK[step] = torch.where(begins_BK, merged.parent_BK.gather(1, parent_BK), parent_BK)
        self._added_SBK[step] = torch.where(begins_BK, last_BK, token_BK)
        return _Beams(
            blank_BK=blank_BK.masked_fill(pruned_BK, _LOG_ZERO),
            label_BK=label_BK.masked_fill(pruned_BK, _LOG_ZERO),
            fused_BK=fused_BK,
            last_BK=last_BK,
            hash_BK=torch.where(pruned_BK, self._no_hash_BK, hash_BK),
            parent_hash_BK=parent_hash_BK.masked_fill(pruned_BK, -1),
            state_BK=state_BK,
        )

    def _rank(self, beams: _Beams, candidates: _Candidates, merged: _Merged) -> Tensor | None:
        """Fill the scores of all candidates. Returns the fused scores of the extensions, None without fusion."""
        stay_BK = torch.logaddexp(candidates.stay_blank_BK, merged.stay_label_BK)
        torch.add(stay_BK, beams.fused_BK, out=self._scores_BN[:, : self.beam_size])
        extend_fused_BKC = None
        if self.fusion is None:
            torch.add(candidates.extend_BKC, beams.fused_BK[..., None], out=self._extend_scores_BKC)
        else:
            labels_BKC = candidates.labels_BC[:, None].expand(-1, self.beam_size, -1)
            extend_fused_BKC = self.fusion.rows(beams.state_BK).gather(2, labels_BKC) + beams.fused_BK[..., None]
            torch.add(candidates.extend_BKC, extend_fused_BKC, out=self._extend_scores_BKC)
        # Absorbed extensions are no candidates of their own. Beams that absorb nothing strike out the last place.
        self._scores_BN[:, self.beam_size :].scatter_(1, merged.absorbed_BK, _LOG_ZERO)
        return extend_fused_BKC

    def _floor(self, scores_BK: Tensor) -> Tensor | float:
        """Score below which beams are pruned."""
        if self.beam_threshold is None:
            return _LOG_ZERO / 2
        return (scores_BK[:, :1] - self.beam_threshold).clamp(min=_LOG_ZERO / 2)

    def backtrace(self, beams: _Beams, starts: list[Int64s], n_best: int) -> list[list[CtcHypothesis]]:
        """The n-best list of each utterance, its labels read from the last step to the first."""
        acoustic_BK, fused_BK = torch.logaddexp(beams.blank_BK, beams.label_BK), beams.fused_BK
        if self.fusion is not None:
            ended_BK = fused_BK + self.fusion.ends(beams.state_BK)
            # If no prefix may end here, return unfinished prefixes rather than none.
            may_end_B1 = ((acoustic_BK + ended_BK) > _LOG_ZERO / 2).any(1, keepdim=True)
            fused_BK = torch.where(may_end_B1, ended_BK, fused_BK)
        best = (acoustic_BK + fused_BK).clamp(min=_LOG_ZERO).topk(min(n_best, self.beam_size), dim=1)
        parents_SBK, added_SBK = self._parents_SBK.cpu().numpy(), self._added_SBK.cpu().numpy()
        beam_BN = best.indices.cpu().numpy()
        rows_B1 = np.arange(len(beam_BN))[:, None]
        path_SBN = np.empty((self.steps, *beam_BN.shape), dtype=np.int64)
        for step in range(self.steps - 1, -1, -1):
            path_SBN[step] = added_SBK[step][rows_B1, beam_BN]
            beam_BN = parents_SBK[step][rows_B1, beam_BN]
        scores = zip(*(x.gather(1, best.indices).tolist() for x in (acoustic_BK, fused_BK)), strict=True)
        results = []
        for row, (acoustic_N, fused_N) in enumerate(scores):
            hypotheses = []
            for n, score in enumerate(best.values[row].tolist()):
                if n > 0 and score <= _LOG_ZERO / 2:
                    break
                steps = np.flatnonzero(path_SBN[:, row, n] >= 0)
                tokens, frames = path_SBN[steps, row, n].tolist(), starts[row][steps].tolist()
                hypotheses.append(CtcHypothesis(tokens, frames, acoustic_N[n], fused_N[n]))
            results.append(hypotheses)
        return results


def _fused_empty(fusion: Fusion | None) -> float:
    """Fused score of the empty text."""
    return 0.0 if fusion is None else float(fusion.ends(torch.tensor(fusion.begin(), device=fusion.device)))


def _step_starts(blank_log_prob_BF: Tensor, frame_lengths_B: Tensor, threshold: float | None) -> list[Int64s]:
    """First frame of each step of each utterance. A run of frames with a sure blank is one step."""
    if threshold is None:
        return [np.arange(frames) for frames in frame_lengths_B.tolist()]
    silent_BF = (blank_log_prob_BF.exp() >= threshold).cpu().numpy()
    starts = []
    for row, frames in enumerate(frame_lengths_B.tolist()):
        silent = silent_BF[row, :frames]
        continues = np.zeros(frames, dtype=bool)
        continues[1:] = silent[1:] & silent[:-1]
        starts.append(np.flatnonzero(~continues))
    return starts


def _step_log_probs(log_probs_BFV: Tensor, starts: list[Int64s], frame_lengths_B: Tensor, blank: int) -> Tensor:
    """Log-probabilities of each step, ``inputs_BSV``. Steps beyond an utterance are a sure blank: no beam changes."""
    batch, frames, size = log_probs_BFV.shape
    device = log_probs_BFV.device
    lengths_B = torch.tensor([len(own) for own in starts])
    steps = int(lengths_B.max())
    if torch.equal(lengths_B, frame_lengths_B):
        inputs_BSV = log_probs_BFV[:, :steps].clone()
    else:
        # The log-probabilities of a run are the sum over its frames. Padding goes to an extra step.
        step_of_BF = np.full((batch, frames), steps)
        for row, (own, count) in enumerate(zip(starts, frame_lengths_B.tolist(), strict=True)):
            begins = np.zeros(count, dtype=np.int64)
            begins[own] = 1
            step_of_BF[row, :count] = begins.cumsum() - 1
        index_BF = torch.from_numpy(step_of_BF).to(device)
        summed = log_probs_BFV.new_zeros(batch, steps + 1, size)
        inputs_BSV = summed.scatter_add_(1, index_BF[..., None].expand(-1, -1, size), log_probs_BFV)[:, :steps]
        inputs_BSV = inputs_BSV.clamp(min=_LOG_ZERO)
    beyond_BS = (torch.arange(steps) >= lengths_B[:, None]).to(device)
    inputs_BSV = inputs_BSV.masked_fill(beyond_BS[..., None], _LOG_ZERO)
    inputs_BSV[..., blank] = inputs_BSV[..., blank].masked_fill(beyond_BS, 0.0)
    return inputs_BSV


def _step_candidates(inputs_BSV: Tensor, blank: int, max_labels: int | None) -> tuple[Tensor, Tensor]:
    """Labels that extend prefixes at each step, and their log-probabilities. The blank is none of them."""
    batch, steps, size = inputs_BSV.shape
    if max_labels is not None and max_labels < size - 1:
        without_blank_BSV = inputs_BSV.clone()
        without_blank_BSV[..., blank] = 2 * _LOG_ZERO
        best = without_blank_BSV.topk(max_labels, dim=-1)
        return best.indices, best.values
    labels_C = torch.tensor([i for i in range(size) if i != blank], device=inputs_BSV.device)
    return labels_C.expand(batch, steps, -1), inputs_BSV[..., labels_C]
