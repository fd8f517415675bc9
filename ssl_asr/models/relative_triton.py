"""The Triton kernels of `ssl_asr.models.relative_kernel`: attention with WavLM's gated position bias, in tiles.

`ssl_asr.models.relative_attention` has the formulas. A program computes a block of queries or of keys of one head of
one utterance, and visits the tiles of the table of scores ``s_ij`` in its row or column::

    forward_kernel    out_i, log-sum-exp_i                    query blocks   keys ->
    rows_kernel       dq_i, dg_i, delta_i, part of dr_n       query blocks   keys ->
    columns_kernel    dk_j, dv_j                              key blocks     queries ->
    distance_kernel   dr_n                                    distances      utterances, query blocks ->

The forward pass keeps the maximum ``m`` and the sum ``l`` of the exponentials so far (Dao et al., 2022,
arXiv:2205.14135). For each tile:

    m' = max(m, max_j s_ij)     p_ij = exp(s_ij - m')     l' = l exp(m - m') + sum_j p_ij
    o' = o exp(m - m') + sum_j keep_ij p_ij v_j           at the end: out = o / l / (1 - dropout)

The backward pass computes ``p_ij = exp(s_ij - log-sum-exp_i)`` again. Exponentials have base 2, so scores contain a
factor ``log2(e)``. Blocks start at the first frame of the utterance, so its results do not depend on its neighbors.

``dr_n`` is a sum over diagonals. Row ``a`` of a tile is rotated to the left by ``a + 1``, so that columns hold equal
distances. A column has two of them, of which one ends in this tile and one continues in the next tile of the row::

    0 1 2 3          1 2 3|0          distances  1 2 3 4    right of the diagonal: continue in the next tile
    0 1 2 3    ->    2 3|0 1                    -3-2-1 0    left of it: end here
    0 1 2 3          3|0 1 2
    0 1 2 3         |0 1 2 3
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_ROUNDS = tl.constexpr(7)
"""Rounds of Philox (Salmon et al., 2011): the least number whose output passes their statistical tests."""


@triton.jit
def _utterance(offsets: tl.tensor, row: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Number of heads, first row of the utterance, its number of frames, and number of rows of the batch."""
    start, end = tl.load(offsets + row), tl.load(offsets + tl.num_programs(2))
    return tl.num_programs(1), start.to(tl.int64), tl.load(offsets + row + 1) - start, end.to(tl.int64)


@triton.jit
def _part(start: tl.tensor, row: tl.tensor, m: tl.tensor, span: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Place of the sums over diagonals that block ``m`` of an utterance has written for a head, int64.

    Parts of an utterance start at ``start // block + row``, which leaves room for those of all utterances before.
    """
    return ((start // block + row + m).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * span


@triton.jit
def _load_rows(
    states: tl.tensor,
    stride: tl.tensor,
    start: tl.tensor,
    i: tl.tensor,
    frames: tl.tensor,
    dim: tl.constexpr,
    block_d: tl.constexpr,
) -> tl.tensor:
    """States of frames; 0 after the last frame."""
    d = tl.arange(0, block_d)
    inside = (i < frames)[:, None] & (d < dim)[None, :]
    return tl.load(states + (start + i)[:, None] * stride + d[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(
    states: tl.tensor,
    stride: tl.tensor,
    start: tl.tensor,
    i: tl.tensor,
    frames: tl.tensor,
    values: tl.tensor,
    dim: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    d = tl.arange(0, block_d)
    inside = (i < frames)[:, None] & (d < dim)[None, :]
    places = states + (start + i)[:, None] * stride + d[None, :]
    tl.store(places, values.to(states.dtype.element_ty), mask=inside)


@triton.jit
def _kept(
    seed: tl.tensor,
    table: tl.tensor,
    i: tl.tensor,
    j_start: tl.tensor,
    threshold: tl.tensor,
    block_i: tl.constexpr,
    block_j: tl.constexpr,
) -> tl.tensor:
    """Which weights of a tile dropout keeps. A function of the seed, the table, the query and the key.

    A call of Philox gives 128 bits: 16 bits for each of 8 keys.
    """
    group = (j_start // 8 + tl.arange(0, block_j // 8))[None, :]
    a, b, c, d = tl.philox(tl.load(seed), group, i[:, None], table, 0, _ROUNDS)
    words = tl.join(tl.join(a, b), tl.join(c, d))
    bits = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (block_i, block_j))
    return bits.to(tl.int32) >= threshold


@triton.jit
def _by_distance(table: tl.tensor, begun: tl.tensor, block: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Sums over the diagonals of a tile that end in it, with what the tile before has begun, and sums that it begins.

    The distances within the tile are ``1 - block`` to ``0``, and ``1`` to ``block``.
    """
    place = tl.arange(0, block)[:, None] + tl.arange(0, block)[None, :] + 1
    turned = tl.gather(table, place & (block - 1), 1)
    ends = place >= block
    return begun + tl.sum(tl.where(ends, turned, 0.0), 0), tl.sum(tl.where(ends, 0.0, turned), 0)


@triton.jit
def _factor(threshold: tl.tensor) -> tl.tensor:
    """Factor of the weights that dropout keeps."""
    return 65536.0 / (65536 - threshold)


@triton.jit
def _scores(
    left: tl.tensor,
    right: tl.tensor,
    gates: tl.tensor,
    relative: tl.tensor,
    distance: tl.tensor,
    inside: tl.tensor,
    scale: tl.constexpr,
    precision: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Scores of a tile times ``log2(e)``, and the bias before the gate."""
    bias = tl.load(relative + distance, mask=inside, other=0.0).to(tl.float32)
    products = tl.dot(left, tl.trans(right), input_precision=precision)
    return products * (scale * _LOG2E) + (gates * _LOG2E) * bias, bias


@triton.jit(do_not_specialize=["width", "threshold"])
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    stride: tl.tensor,
    gate: tl.tensor,
    relative: tl.tensor,
    offsets: tl.tensor,
    seed: tl.tensor,
    out: tl.tensor,
    log_sums: tl.tensor,
    width: tl.tensor,
    threshold: tl.tensor,
    scale: tl.constexpr,
    dim: tl.constexpr,
    block_d: tl.constexpr,
    block_i: tl.constexpr,
    block_j: tl.constexpr,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Output and log-sum-exp of a block of queries."""
    block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads, start, frames, end = _utterance(offsets, row)
    if block * block_i < frames:
        i = block * block_i + tl.arange(0, block_i)
        gates = tl.load(gate + (start + i) * heads + head, mask=i < frames, other=0.0).to(tl.float32)
        relative += head * (2 * width - 1) + width - 1
        q_tile = _load_rows(q + head * dim, stride, start, i, frames, dim, block_d)
        top = tl.full((block_i,), float("-inf"), tl.float32)
        total = tl.zeros((block_i,), tl.float32)
        mixed = tl.zeros((block_i, block_d), tl.float32)
        for j0 in range(0, frames, block_j):
            j = j0 + tl.arange(0, block_j)
            k_tile = _load_rows(k + head * dim, stride, start, j, frames, dim, block_d)
            v_tile = _load_rows(v + head * dim, stride, start, j, frames, dim, block_d)
            inside = (i < frames)[:, None] & (j < frames)[None, :]
            distance = j[None, :] - i[:, None]
            s, _ = _scores(q_tile, k_tile, gates[:, None], relative, distance, inside, scale, precision)
            s = tl.where((j < frames)[None, :], s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, 1))
            p, fade = tl.exp2(s - new_top[:, None]), tl.exp2(top - new_top)
            top, total = new_top, total * fade + tl.sum(p, 1)
            if drops:
                p = tl.where(_kept(seed, row * heads + head, i, j0, threshold, block_i, block_j), p, 0.0)
            mixed = tl.dot(p.to(v_tile.dtype), v_tile, mixed * fade[:, None], input_precision=precision)
        if drops:
            mixed *= _factor(threshold)
        _store_rows(out + head * dim, heads * dim, start, i, frames, mixed / total[:, None], dim, block_d)
        tl.store(log_sums + head * end + start + i, top + tl.log2(total), mask=i < frames)


@triton.jit
def _gradients(
    s: tl.tensor,
    log_sum: tl.tensor,
    delta: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    inside: tl.tensor,
    kept: tl.tensor,
    threshold: tl.tensor,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Weights of a tile after dropout, and gradients of its scores.

    ``left`` and ``right`` are the gradients of the output and the values, or the other way round in transposed tiles.
    """
    p = tl.where(inside, tl.exp2(s - log_sum), 0.0)
    d_weights = tl.dot(left, tl.trans(right), input_precision=precision)
    dropped = p
    if drops:
        dropped = tl.where(kept, p * _factor(threshold), 0.0)
        d_weights = tl.where(kept, d_weights * _factor(threshold), 0.0)
    return dropped, p * (d_weights - delta)


@triton.jit(do_not_specialize=["width", "threshold"])
def rows_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    stride: tl.tensor,
    gate: tl.tensor,
    relative: tl.tensor,
    offsets: tl.tensor,
    seed: tl.tensor,
    out: tl.tensor,
    d_out: tl.tensor,
    log_sums: tl.tensor,
    deltas: tl.tensor,
    d_q: tl.tensor,
    d_gate: tl.tensor,
    partials: tl.tensor,
    width: tl.tensor,
    threshold: tl.tensor,
    scale: tl.constexpr,
    dim: tl.constexpr,
    block_d: tl.constexpr,
    block: tl.constexpr,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Gradients of a block of queries and of their gates, and the part of the block in the gradient of the bias."""
    head, row, c = tl.program_id(1), tl.program_id(2), tl.arange(0, block)
    heads, start, frames, end = _utterance(offsets, row)
    if tl.program_id(0) * block < frames:
        i = tl.program_id(0) * block + c
        at_gates, at_sums = (start + i) * heads + head, head * end + start + i
        gates = tl.load(gate + at_gates, mask=i < frames, other=0.0).to(tl.float32)
        log_sum = tl.load(log_sums + at_sums, mask=i < frames, other=0.0)[:, None]
        relative += head * (2 * width - 1) + width - 1
        q_tile = _load_rows(q + head * dim, stride, start, i, frames, dim, block_d)
        d_tile = _load_rows(d_out + head * dim, heads * dim, start, i, frames, dim, block_d)
        out_tile = _load_rows(out + head * dim, heads * dim, start, i, frames, dim, block_d)
        delta = tl.sum(out_tile.to(tl.float32) * d_tile.to(tl.float32), 1)
        tl.store(deltas + at_sums, delta, mask=i < frames)
        into_q = tl.zeros((block, block_d), tl.float32)
        into_gate, begun = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
        if partials is not None:
            part = partials + c + _part(start, row, tl.program_id(0), (tl.num_programs(0) + 1) * block, block)
        for j0 in range(0, frames, block):
            j = j0 + c
            k_tile = _load_rows(k + head * dim, stride, start, j, frames, dim, block_d)
            v_tile = _load_rows(v + head * dim, stride, start, j, frames, dim, block_d)
            inside, distance = (i < frames)[:, None] & (j < frames)[None, :], j[None, :] - i[:, None]
            kept = _kept(seed, row * heads + head, i, j0, threshold, block, block) if drops else inside
            s, bias = _scores(q_tile, k_tile, gates[:, None], relative, distance, inside, scale, precision)
            _, d_s = _gradients(s, log_sum, delta[:, None], d_tile, v_tile, inside, kept, threshold, drops, precision)
            into_q = tl.dot(d_s.to(k_tile.dtype), k_tile, into_q, input_precision=precision)
            into_gate += tl.sum(d_s * bias, 1)
            if partials is not None:
                ended, begun = _by_distance(d_s * gates[:, None], begun, block)
                tl.store(part + j0, ended)
        _store_rows(d_q + head * dim, heads * dim, start, i, frames, into_q * scale, dim, block_d)
        tl.store(d_gate + at_gates, into_gate.to(d_gate.dtype.element_ty), mask=i < frames)
        if partials is not None:
            tl.store(part + tl.cdiv(frames, block) * block, begun)


@triton.jit(do_not_specialize=["width", "threshold"])
def columns_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    stride: tl.tensor,
    gate: tl.tensor,
    relative: tl.tensor,
    offsets: tl.tensor,
    seed: tl.tensor,
    d_out: tl.tensor,
    log_sums: tl.tensor,
    deltas: tl.tensor,
    d_k: tl.tensor,
    d_v: tl.tensor,
    width: tl.tensor,
    threshold: tl.tensor,
    scale: tl.constexpr,
    dim: tl.constexpr,
    block_d: tl.constexpr,
    block: tl.constexpr,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Gradients of a block of keys and of their values. Tiles are transposed: keys, queries."""
    j0, head, row = tl.program_id(0) * block, tl.program_id(1), tl.program_id(2)
    heads, start, frames, end = _utterance(offsets, row)
    if j0 < frames:
        j = j0 + tl.arange(0, block)
        relative += head * (2 * width - 1) + width - 1
        k_tile = _load_rows(k + head * dim, stride, start, j, frames, dim, block_d)
        v_tile = _load_rows(v + head * dim, stride, start, j, frames, dim, block_d)
        into_k, into_v = tl.zeros((block, block_d), tl.float32), tl.zeros((block, block_d), tl.float32)
        for i0 in range(0, frames, block):
            i = i0 + tl.arange(0, block)
            gates = tl.load(gate + (start + i) * heads + head, mask=i < frames, other=0.0).to(tl.float32)
            log_sum = tl.load(log_sums + head * end + start + i, mask=i < frames, other=0.0)
            delta = tl.load(deltas + head * end + start + i, mask=i < frames, other=0.0)
            q_tile = _load_rows(q + head * dim, stride, start, i, frames, dim, block_d)
            d_tile = _load_rows(d_out + head * dim, heads * dim, start, i, frames, dim, block_d)
            inside, distance = (j < frames)[:, None] & (i < frames)[None, :], j[:, None] - i[None, :]
            kept = tl.trans(_kept(seed, row * heads + head, i, j0, threshold, block, block)) if drops else inside
            s, _ = _scores(k_tile, q_tile, gates[None, :], relative, distance, inside, scale, precision)
            dropped, d_s = _gradients(
                s, log_sum[None, :], delta[None, :], v_tile, d_tile, inside, kept, threshold, drops, precision
            )
            into_v = tl.dot(dropped.to(d_tile.dtype), d_tile, into_v, input_precision=precision)
            into_k = tl.dot(d_s.to(q_tile.dtype), q_tile, into_k, input_precision=precision)
        _store_rows(d_k + head * dim, heads * dim, start, j, frames, into_k * scale, dim, block_d)
        _store_rows(d_v + head * dim, heads * dim, start, j, frames, into_v, dim, block_d)


@triton.jit(do_not_specialize=["batch", "width", "span"])
def distance_kernel(
    partials: tl.tensor,
    offsets: tl.tensor,
    d_relative: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
    span: tl.tensor,
    block: tl.constexpr,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
) -> None:
    """Gradient of the bias of some distances, from the parts of all blocks of queries in a fixed order."""
    head = tl.program_id(1)
    r = tl.program_id(0) * block_r + tl.arange(0, block_r)
    total = tl.zeros((block_r,), tl.float32)
    for row in range(batch):
        start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
        blocks = tl.cdiv(end - start, block)
        for first in range(0, blocks, block_m):
            m = first + tl.arange(0, block_m)
            # A part begins with the distance from its last query to the first key.
            place = (m * block + block - 1)[:, None] + (r - (width - 1))[None, :]
            inside = (m < blocks)[:, None] & (place >= 0) & (place < (blocks + 1) * block)
            part = partials + _part(start, row, m, span, block)
            total += tl.sum(tl.load(part[:, None] + place, mask=inside, other=0.0), 0)
    tl.store(d_relative + head * (2 * width - 1) + r, total, mask=r < 2 * width - 1)
