"""Factorizations take one thread, and leave the rest of a merge its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunery_trainer.merging.factorization import qr, svd


@pytest.mark.parametrize(("name", "factor"), [("qr", qr), ("svd", svd)])
def test_one_thread(name: str, factor: Callable[[torch.Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = getattr(torch.linalg, name), []

    def watched(*args: Any, **more: Any) -> Any:
        seen.append(torch.get_num_threads())
        return plain(*args, **more)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(torch.linalg, name, watched)
    try:
        parts = factor(torch.randn(40, 30, generator=torch.Generator().manual_seed(1)))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
    assert [list(part.shape) for part in parts] in ([[40, 30], [30, 30]], [[40, 30], [30], [30, 30]])


def test_a_failure_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        qr(torch.randn(3))
    assert torch.get_num_threads() == before
