"""QR and SVD of matrices of a module's size, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def qr(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q (m × k) and R (k × n) of a matrix (m × n), k the smaller side."""
    with _one_thread():
        q, r = torch.linalg.qr(matrix)
    return q, r


def svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U (m × k), the singular values (k) and Vᵀ (k × n) of a matrix (m × n), k the smaller side."""
    with _one_thread():
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread in the body.

    MKL splits a factorization into many small pieces, between which its threads wait for each other without sleeping.
    Where other processes want the cores, too, a QR of 1536 × 272 took 250 times the CPU on two threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
