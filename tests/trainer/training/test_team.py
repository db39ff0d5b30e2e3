"""Several processes that train together come to what one of them comes to alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from kit.team_runs import METHODS, Trained, train
from kit.teams import together


def apart(one: Trained, other: Trained) -> float:
    return max(float((one.state[name] - tensor).abs().max()) for name, tensor in other.state.items())


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_base_in_parts_trains_the_same(llama: Path, tmp_path: Path, method: str, world: int) -> None:
    blocks = METHODS[method]
    [alone] = together(1, tmp_path / "alone", partial(train, llama, blocks))
    first, *others = together(world, tmp_path / "team", partial(train, llama, blocks), sharded=True)
    assert first.losses == pytest.approx(alone.losses, abs=2e-6)
    assert apart(first, alone) < 5e-5
    for other in others:
        assert apart(first, other) == 0


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_team_trains_what_one_process_trains(llama: Path, tmp_path: Path, method: str, world: int) -> None:
    [alone] = together(1, tmp_path / "alone", partial(train, llama, METHODS[method]))
    first, *others = together(world, tmp_path / "team", partial(train, llama, METHODS[method]))
    assert first.losses == pytest.approx(alone.losses, abs=2e-6)
    assert first.norms == pytest.approx(alone.norms, rel=1e-4)
    assert first.tokens == alone.tokens
    assert apart(first, alone) < 5e-5
    for other in others:
        assert apart(first, other) == 0
