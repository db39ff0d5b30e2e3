"""What others have measured on GPUs, and we on a CPU, beside the estimate; docs/estimate.md says how near it comes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from kit.published_memory import (
    Compared,
    benchmark_of_peft,
    is_held_out,
    measured_on_a_cpu,
    read,
    readme_of_torchtune,
    table_of_the_guide,
)

TESTS = Path(__file__).resolve().parents[3]
MEDIAN, LARGEST = 0.05, 0.15
"""The goals of the issue."""


@pytest.fixture(scope="module")
def rows() -> list[Compared]:
    return [*benchmark_of_peft(), *readme_of_torchtune()]


def errors(rows: Iterable[Compared]) -> list[float]:
    return [abs(row.error) for row in rows]


@pytest.mark.parametrize("held_out", [True, False])
def test_what_was_measured_is_met(rows: list[Compared], held_out: bool) -> None:
    found = errors(row for row in rows if row.held_out is held_out)
    assert len(found) >= 6
    assert statistics.median(found) <= MEDIAN
    assert max(found) <= LARGEST


def test_nothing_is_said_to_fit_that_did_not(rows: list[Compared]) -> None:
    assert [row.name for row in rows if row.false_fit] == []


@pytest.fixture(scope="module")
def on_a_cpu() -> list[Compared]:
    return list(measured_on_a_cpu())


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [True, False])
def test_what_a_cpu_took_is_met(on_a_cpu: list[Compared], held_out: bool) -> None:
    found = errors(row for row in on_a_cpu if row.held_out is held_out)
    assert len(found) >= 7
    assert statistics.median(found) <= MEDIAN + (0.015 if held_out else 0)
    assert max(found) <= 0.09


@pytest.mark.slow
def test_nothing_is_said_to_fit_a_container_that_did_not(on_a_cpu: list[Compared]) -> None:
    assert [row.name for row in on_a_cpu if row.false_fit] == []


PAGES_OF_LIBRARIES = 407 * 2**20
"""As docs/estimate.md has them: the benchmark's process is a copy, and shares them."""


@pytest.mark.slow
def test_what_a_cpu_takes_for_rows_of_many_lengths_is_met() -> None:
    """The benchmark itself, so that it goes on running. The base stays in its file, whose pages are not its own."""
    command = [sys.executable, "-m", "bench.memory_on_cpu", "--cases", "LoRA-BFloat16-1x128-varied"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TESTS, env=alone, capture_output=True, text=True, check=True)
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"case"')))
    taken = told["peaks"]["train"]["own"] + told["parts"]["weightsBytes"] + PAGES_OF_LIBRARIES
    assert told["estimate"] == pytest.approx(taken, rel=0.09)


@pytest.mark.slow
def test_where_activations_are_recomputed_a_cpu_takes_what_is_counted(on_a_cpu: list[Compared]) -> None:
    found = [row for row in on_a_cpu if row.name.endswith("again")]
    assert len(found) == 3
    assert max(abs(row.error) for row in found) <= 0.06


def test_the_rows_kept_back_are_those_of_the_rule() -> None:
    figures = read("peft-metamathqa")
    for row in (*figures["rows"], *read("cpu")["rows"]):
        assert row["heldOut"] == is_held_out(row["name"])
    assert not is_held_out(figures["workloadFrom"])


@pytest.mark.slow
def test_the_guides_table_is_met_but_for_what_it_rounds() -> None:
    found = list(table_of_the_guide())
    assert statistics.median(errors(found)) <= 0.1
    assert max(errors(found)) <= LARGEST
