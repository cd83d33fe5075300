"""The leading singular vectors of a product of two thin matrices, without the product."""

import torch
from torch import Tensor


def leading(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B [out, rank], A [rank, in]) of the best approximation of `up` @ `down` of that rank: B = U S and A = V', float64.

    `up` [out, n], `down` [n, in]: QR of both, and the singular value decomposition of the small core in between (HLoRA). Where the product
    has fewer ranks, B ends in zeros, and A's last rows are orthonormal to the others, so that they can be trained. The largest entry of each
    row of A is positive: a decomposition's signs are free.
    """
    left, left_core = torch.linalg.qr(up.double())
    right, right_core = torch.linalg.qr(down.double().T)
    vectors, values, others = torch.linalg.svd(left_core @ right_core.T)
    kept = min(rank, len(values))
    made, read = (left @ vectors[:, :kept]) * values[:kept], (right @ others[:kept].T).T
    if kept < rank:
        made = torch.cat([made, made.new_zeros(len(made), rank - kept)], dim=1)
        read = torch.cat([read, _completing(read, rank - kept)])
    signs = read.gather(1, read.abs().argmax(1, keepdim=True)).sign()
    return made * signs.T, read * signs


def dense_leading(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`leading` of a product that is there as one matrix [out, in] (FlexLoRA: Bai et al. 2024, algorithm 1)."""
    vectors, values, others = torch.linalg.svd(product.double(), full_matrices=False)
    signs = others[:rank].gather(1, others[:rank].abs().argmax(1, keepdim=True)).sign()
    made: Tensor = vectors[:, :rank] * values[:rank] * signs.T
    read: Tensor = others[:rank] * signs
    return made, read


def _completing(rows: Tensor, count: int) -> Tensor:
    """[count, in]: orthonormal rows that are orthogonal to these."""
    whole, _ = torch.linalg.qr(torch.cat([rows, torch.eye(rows.shape[1], dtype=rows.dtype)]).T)
    found: Tensor = whole[:, len(rows) : len(rows) + count].T
    return found
