"""CTC prefix beam search, batched over utterances and beams.

Shape suffixes in addition to `ssl_asr.types`:

    K    beams of an utterance; J and I if pairs of beams are compared
    S    steps: frames, or runs of blank frames
    C    candidate labels of a step, the last one a dummy
    N    scored candidates of a step: K beams that stay, and K * C extensions
    F    fields of floats of a beam, G fields of integers, H the two hashes or the two fields of the history
    R    hypotheses of an n-best list
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ssl_asr.decoding.arpa import Int64s
from ssl_asr.decoding.fusion.tables import Fusion

# Finite stand-in for log 0, far below any log-probability. Sums of a few stand-ins are finite in float32.
_LOG_ZERO = -1e30
_HASH_FACTOR, _EMPTY_HASH = 6_364_136_223_846_793_005, 1


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
    search.run()
    return search.backtrace(starts, n_best)


class _Beams:
    """The prefixes kept after a step. They are replaced in place.

    Attributes:
        floats_FBK: The tensors ``p_b``, ``p_n`` and, with shallow fusion, the fused score.
        ints_GBK: All other tensors. The last two are the history: see `_Search`.
        p_b_BK, p_n_BK: ``p_b`` and ``p_n`` of each prefix, see `prefix_beam_search`.
        fused_BK, states_PBK: Score of shallow fusion of each prefix, and the state of the fusion after it.
        last_BK: Last label of each prefix, the blank for the empty prefix.
        hash_BK, parent_hash_BK: Hash of each prefix, and of the prefix without its last label.
    """

    def __init__(self, batch: int, beam_size: int, blank: int, fusion: Fusion | None, device: torch.device) -> None:
        states_PBK = None if fusion is None else fusion.begin(batch, beam_size)
        self.floats_FBK = torch.zeros(2 if fusion is None else 3, batch, beam_size, device=device)
        fields = 5 if states_PBK is None else 5 + len(states_PBK)
        self.ints_GBK = torch.zeros(fields, batch, beam_size, dtype=torch.int64, device=device)
        self.p_b_BK, self.p_n_BK, *fused = self.floats_FBK.unbind(0)
        self.fused_BK = fused[0] if fused else torch.zeros_like(self.p_b_BK)
        self.last_BK, self.hash_BK, self.parent_hash_BK = self.ints_GBK[:3].unbind(0)
        self.hashes_HBK, self.states_PBK, self.history_HBK = self.ints_GBK[1:3], self.ints_GBK[3:-2], self.ints_GBK[-2:]
        # Pruned beams get a hash that matches no prefix, so no candidate can have them as a parent.
        no_hash_BK = (-2 - torch.arange(beam_size, device=device)).expand(batch, -1)
        self.no_hashes_HBK = torch.stack([no_hash_BK, torch.full_like(no_hash_BK, -1)])
        # At first, the empty prefix, and pruned beams.
        self.floats_FBK[:2] = _LOG_ZERO
        self.p_b_BK[:, 0] = 0.0
        self.last_BK.fill_(blank)
        self.hashes_HBK.copy_(self.no_hashes_HBK)
        self.hash_BK[:, 0] = _EMPTY_HASH
        if states_PBK is not None:
            self.states_PBK.copy_(states_PBK)


@dataclass(slots=True)
class _Candidates:
    """Candidates of a step: every beam that stays, and every beam extended by every candidate label.

    Attributes:
        total_BK: ``logaddexp(p_b, p_n)`` of each beam before the step.
        last_log_prob_BK: Log-probability of each beam's last label in the step.
        last_index_BK: Index of each beam's last label in the candidate list, C - 1 if it is not a candidate.
        stay_p_n_BK: ``p_n`` of the beams that stay.
    """

    total_BK: Tensor
    last_log_prob_BK: Tensor
    last_index_BK: Tensor
    stay_p_n_BK: Tensor


@dataclass(slots=True)
class _Fused:
    """Shallow fusion of a step.

    Attributes:
        scores_BKC: Fused score of every extended beam.
        nexts: States of the fusion after every extension, a tensor ``nexts_BKC`` for each integer of a state.
    """

    scores_BKC: Tensor
    nexts: list[Tensor]


class _Search:
    """The steps of `prefix_beam_search`, and the tensors that are allocated once per search.

    The last candidate of each step is a dummy, which is never kept: its log-probability is log 0. The history of a step
    is the index of each beam's prefix in the beams before the step, and the label that the step adds, or -1.
    """

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
        self.beam_size, self.fusion, self.beam_threshold = beam_size, fusion, beam_threshold
        self.beams = _Beams(batch, beam_size, blank, fusion, device)
        labels_BSC, log_probs_BSC = _step_candidates(inputs_BSV, blank, max_labels)
        self.width = width = labels_BSC.shape[-1]
        # Views of each step, made once.
        self._inputs, self._blanks = inputs_BSV.unbind(1), inputs_BSV[..., blank, None].unbind(1)
        self._labels, self._log_probs = labels_BSC.unbind(1), log_probs_BSC.unbind(1)
        # Index of each label in the candidate list. It is the same at all steps if all labels are candidates.
        self._lists_all = width == size
        self._positions_BC = torch.arange(width, device=device).expand(batch, -1)
        self._index_BV = torch.empty(batch, size, dtype=torch.int64, device=device)
        self._list_candidates(labels_BSC[:, 0])
        # Scores of all candidates: K beams that stay, and K * C extensions.
        self._scores_BN = torch.empty(batch, beam_size * (1 + width), device=device)
        self._stay_scores_BK, self._extensions_BN = self._scores_BN[:, :beam_size], self._scores_BN[:, beam_size:]
        extensions_BKC = self._extensions_BN.view(batch, beam_size, width)
        # `p_n` of the extensions. Without fusion it is their score.
        self._extend_p_n_BKC = extensions_BKC if fusion is None else torch.empty_like(extensions_BKC)
        # Beams that stay, in the order of `_Beams.floats_FBK`.
        self._stay_FBK = torch.zeros_like(self.beams.floats_FBK)
        # For each candidate: the beam that it continues, its label in the candidate list, and its extension.
        beam_K, extension_N = torch.arange(beam_size, device=device), torch.arange(beam_size * width, device=device)
        parents_N = torch.cat([beam_K, extension_N.div(width, rounding_mode="floor")])
        columns_N = torch.cat([torch.full_like(beam_K, width - 1), extension_N % width])
        self._places_FN = torch.stack([parents_N, columns_N, torch.cat([torch.zeros_like(beam_K), extension_N])])
        self._own_K, self._first_B1 = beam_K, torch.arange(batch, device=device)[:, None] * beam_size
        self._never, self._no_label = torch.tensor(2 * _LOG_ZERO, device=device), torch.tensor(-1, device=device)
        self._dummy = torch.tensor(width - 1, device=device)
        self._log_zero_BK = torch.full_like(self.beams.p_b_BK, _LOG_ZERO)
        self._history_SHBK = self.beams.history_HBK.new_empty(self.steps, 2, batch, beam_size)

    def run(self) -> None:
        """All steps. Nothing in a step waits for the device, unless an automaton of the fusion has no table."""
        for step in range(self.steps):
            candidates = self.score_candidates(step)
            fused = None if self.fusion is None else self.fuse(self.fusion, step)
            self.merge_duplicates(candidates)
            self.keep_best(fused, step)

    def score_candidates(self, step: int) -> _Candidates:
        """Log-probabilities of every beam that stays, and of every beam extended by every candidate label."""
        beams, log_probs_BC = self.beams, self._log_probs[step]
        total_BK = torch.logaddexp(beams.p_b_BK, beams.p_n_BK)
        last_log_prob_BK = self._inputs[step].gather(1, beams.last_BK)
        # Case 1, prefix unchanged: emit blank, or repeat the last label. `p_n` of the empty prefix is log 0.
        torch.add(total_BK, self._blanks[step], out=self._stay_FBK[0])
        stay_p_n_BK = beams.p_n_BK + last_log_prob_BK
        # Case 2, prefix extended by one label. A repeated label requires a blank in between.
        torch.add(total_BK[..., None], log_probs_BC[:, None], out=self._extend_p_n_BKC)
        if not self._lists_all:
            self._list_candidates(self._labels[step])
        last_index_BK = self._index_BV.gather(1, beams.last_BK)
        after_blank_BK = beams.p_b_BK + log_probs_BC.gather(1, last_index_BK)
        self._extend_p_n_BKC.scatter_(2, last_index_BK[..., None], after_blank_BK[..., None])
        return _Candidates(total_BK, last_log_prob_BK, last_index_BK, stay_p_n_BK)

    def _list_candidates(self, labels_BC: Tensor) -> None:
        """Store the index of each label in the candidate list."""
        self._index_BV.fill_(self.width - 1).scatter_(1, labels_BC, self._positions_BC)

    def fuse(self, fusion: Fusion, step: int) -> _Fused:
        """Add the scores of shallow fusion to the extensions."""
        beams = self.beams
        scores_BKC, nexts = fusion.extend(beams.states_PBK, self._labels[step][:, None])
        scores_BKC = scores_BKC + beams.fused_BK[..., None]
        torch.add(self._extend_p_n_BKC, scores_BKC, out=self._extensions_BN.view_as(scores_BKC))
        return _Fused(scores_BKC, nexts)

    def merge_duplicates(self, candidates: _Candidates) -> None:
        """Merge duplicates: the parent of a beam, extended by the last label of the beam, is the same prefix.

        The beam that stays absorbs the extension. Stores the scores and the history of the beams that stay.
        """
        beams, stay_p_b_BJ, stay_p_n_BJ = self.beams, self._stay_FBK[0], candidates.stay_p_n_BK
        has_parent_BJ, parent_BJ = (beams.parent_hash_BK[..., None] == beams.hash_BK[:, None]).max(-1)
        repeats_BJ = beams.last_BK.gather(1, parent_BJ) == beams.last_BK
        p_b_BJ, total_BJ = beams.p_b_BK.gather(1, parent_BJ), candidates.total_BK.gather(1, parent_BJ)
        parent_total_BJ = torch.where(repeats_BJ, p_b_BJ, total_BJ)
        extended_BJ = torch.where(has_parent_BJ, parent_total_BJ + candidates.last_log_prob_BK, self._never)
        # The last label begins in this step if the parent's extension is more probable than the beam that stays.
        begins_BJ = extended_BJ > torch.logaddexp(stay_p_b_BJ, stay_p_n_BJ)
        torch.where(begins_BJ, parent_BJ, self._own_K, out=beams.history_HBK[0])
        torch.where(begins_BJ, beams.last_BK, self._no_label, out=beams.history_HBK[1])
        torch.logaddexp(stay_p_n_BJ, extended_BJ, out=self._stay_FBK[1])
        torch.logaddexp(stay_p_b_BJ, self._stay_FBK[1], out=self._stay_scores_BK)
        if self.fusion is not None:
            self._stay_FBK[2].copy_(beams.fused_BK)
            self._stay_scores_BK.add_(beams.fused_BK)
        # Remove absorbed extensions. Beams that absorb nothing overwrite the dummy candidate.
        absorbed_BJ = torch.add(candidates.last_index_BK, parent_BJ, alpha=self.width)
        absorbed_BJ = torch.where(has_parent_BJ, absorbed_BJ, self._dummy)
        self._extensions_BN.scatter_(1, absorbed_BJ, _LOG_ZERO)

    def keep_best(self, fused: _Fused | None, step: int) -> None:
        """Replaces the beams by the best candidates, and stores their history."""
        beams = self.beams
        scores_BK, index_BK = self._scores_BN.topk(self.beam_size, dim=1)
        places_FN = self._places_FN.index_select(1, index_BK.flatten())
        parent_BK, column_BK, extension_BK = places_FN.view(3, *index_BK.shape).unbind(0)
        added_BK = self._labels[step].gather(1, column_BK)
        pruned_BK = scores_BK < self._floor(scores_BK)
        # Whether a label is added. Pruned beams stay as they are, so that the fusion does not follow them.
        moves_BK = (index_BK >= self.beam_size) > pruned_BK
        rows_N = (self._first_B1 + parent_BK).flatten()
        floats_FBK = self._stay_FBK.flatten(1).index_select(1, rows_N).view_as(self._stay_FBK)
        ints_GBK = beams.ints_GBK.flatten(1).index_select(1, rows_N).view_as(beams.ints_GBK)
        hash_BK = ints_GBK[1]
        longer_hash_BK = torch.add(added_BK, hash_BK, alpha=_HASH_FACTOR)
        floats, states = [scores_BK], []
        if fused is not None:
            floats = [x.flatten(1).gather(1, extension_BK) for x in (self._extend_p_n_BKC, fused.scores_BKC)]
            states = [x.flatten(1).gather(1, extension_BK) for x in fused.nexts]
        longer_GBK = torch.stack([added_BK, longer_hash_BK, hash_BK, *states, parent_BK, added_BK])
        torch.where(moves_BK, torch.stack([self._log_zero_BK, *floats]), floats_FBK, out=beams.floats_FBK)
        torch.where(moves_BK, longer_GBK, ints_GBK, out=beams.ints_GBK)
        if self.fusion is not None:
            self.fusion.arrive(beams.states_PBK)
        beams.floats_FBK[:2].masked_fill_(pruned_BK, _LOG_ZERO)
        torch.where(pruned_BK, beams.no_hashes_HBK, beams.hashes_HBK, out=beams.hashes_HBK)
        self._history_SHBK[step] = beams.history_HBK

    def _floor(self, scores_BK: Tensor) -> Tensor | float:
        """Score below which beams are pruned."""
        if self.beam_threshold is None:
            return _LOG_ZERO / 2
        return (scores_BK[:, :1] - self.beam_threshold).clamp_(min=_LOG_ZERO / 2)

    def backtrace(self, starts: list[Int64s], n_best: int) -> list[list[CtcHypothesis]]:
        """Returns the n-best list of each utterance. Labels are read from the last step to the first."""
        beams = self.beams
        acoustic_BK, fused_BK = torch.logaddexp(beams.p_b_BK, beams.p_n_BK), beams.fused_BK
        if self.fusion is not None:
            fused_at_end_BK = fused_BK + self.fusion.ends(beams.states_PBK)
            # If the fusion allows no prefix to end, return unfinished prefixes instead of an empty list.
            may_end_B1 = ((acoustic_BK + fused_at_end_BK) > _LOG_ZERO / 2).any(1, keepdim=True)
            fused_BK = torch.where(may_end_B1, fused_at_end_BK, fused_BK)
        best = (acoustic_BK + fused_BK).clamp(min=_LOG_ZERO).topk(min(n_best, self.beam_size), dim=1)
        history_SHBK, beam_BR = self._history_SHBK.cpu().numpy(), best.indices.cpu().numpy()
        rows_B1 = np.arange(len(beam_BR))[:, None]
        path_SBR = np.empty((self.steps, *beam_BR.shape), dtype=np.int64)
        for step in range(self.steps - 1, -1, -1):
            path_SBR[step] = history_SHBK[step, 1, rows_B1, beam_BR]
            beam_BR = history_SHBK[step, 0, rows_B1, beam_BR]
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
    return 0.0 if fusion is None else float(fusion.ends(fusion.begin()))


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
    """Labels that extend prefixes at each step, and their log-probabilities. The last one is a blank with log 0."""
    batch, steps, size = inputs_BSV.shape
    if max_labels is not None and max_labels < size - 1:
        without_blank_BSV = inputs_BSV.clone()
        without_blank_BSV[..., blank] = 2 * _LOG_ZERO
        best = without_blank_BSV.topk(max_labels, dim=-1)
        return pad(best.indices, (0, 1), value=blank), pad(best.values, (0, 1), value=_LOG_ZERO)
    labels_C = torch.tensor([*(i for i in range(size) if i != blank), blank], device=inputs_BSV.device)
    log_probs_BSC = inputs_BSV[..., labels_C]
    log_probs_BSC[..., -1] = _LOG_ZERO
    return labels_C.expand(batch, steps, -1), log_probs_BSC
