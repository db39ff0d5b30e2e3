"""The marker `slow` and the time that a fast test may take: pytest hooks that tests/conftest.py registers.

`make test` runs fast tests only, `make test-all` all of them:

    @pytest.mark.slow                       every case of a test is slow
    @pytest.mark.slow(fast=["LoRA", "K*"])  every case is slow but those whose id matches a pattern
    @pytest.mark.slow(only=["EVA"])         only the cases whose id matches are slow

A fast test without a node that takes longer than MAX_CPU_SECONDS or MAX_SECONDS fails.
"""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Generator
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest

from kit.scheduling import SHARING, scope_of

MAX_CPU_SECONDS: Final = 12.0
"""Of a fast test and the processes that it has waited for; the time of its fixtures is not counted."""
MAX_SECONDS: Final = 60.0
"""Of a fast test on the clock, which a busy machine makes longer."""
WORKFLOWS: Final = "integration/workflows/"
"""The folder of tests that each start several pods as processes."""
MAX_WORKFLOW_CPU_SECONDS: Final = 60.0
MAX_WORKFLOW_SECONDS: Final = 240.0
_BEGAN: Final = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow-seconds."""
    parser.addoption("--slow-seconds", type=float, help="shuffle the files, and skip tests not begun after so long")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note when the session began."""
    session.config.stash[_BEGAN] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test for which --slow-seconds leaves no time."""
    seconds = item.config.getoption("--slow-seconds")
    if seconds is not None and time.monotonic() > item.config.stash[_BEGAN] + seconds:
        pytest.skip("no time left for slow tests (--slow-seconds)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its folder (integration, e2e), and take `slow` from the cases that its marker calls fast.

    Shuffle the files for several processes, so that tests that wait run beside tests that compute; those that share
    servers come first, as one process runs them.
    """
    limited = config.getoption("--slow-seconds") is not None
    if limited or hasattr(config, "workerinput"):
        files = sorted({item.path for item in items})
        random.Random(time.strftime("%Y-%m-%d") if limited else 0).shuffle(files)
        items.sort(key=lambda item: (scope_of(item.nodeid) not in SHARING, files.index(item.path)))
    for item in items:
        kind = item.nodeid.partition("/")[0]
        if kind in ("integration", "e2e"):
            item.add_marker(kind)
        marks = [mark for mark in item.own_markers if mark.name != "slow" or not _is_fast(item, mark)]
        item.own_markers[:] = marks


def _is_fast(item: pytest.Item, mark: pytest.Mark) -> bool:
    case: Any = getattr(item, "callspec", None)
    if case is None or not mark.kwargs:
        return False
    ((keyword, patterns),) = mark.kwargs.items()
    return any(fnmatchcase(case.id, pattern) for pattern in patterns) is {"fast": True, "only": False}[keyword]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a fast test that takes too long, under a profiler or coverage, too."""
    began, cpu = time.monotonic(), _cpu_seconds()
    result = yield
    seconds = time.monotonic() - began
    # A server that ends in this test adds the CPU time of its whole life.
    cpu = min(_cpu_seconds() - cpu, seconds * (os.cpu_count() or 1))
    limited = item.get_closest_marker("slow") is None and item.get_closest_marker("e2e") is None
    most_cpu, most = MAX_CPU_SECONDS, MAX_SECONDS
    if item.nodeid.startswith(WORKFLOWS):
        most_cpu, most = MAX_WORKFLOW_CPU_SECONDS, MAX_WORKFLOW_SECONDS
    if limited and (cpu > most_cpu or seconds > most):
        pytest.fail(
            f"{item.nodeid} took {cpu:.1f} CPU seconds and {seconds:.0f} seconds: a fast test takes at most "
            f"{most_cpu:.0f} and {most:.0f}. Fix: make it cheaper, or mark it slow (tests/kit/slow.py).",
            pytrace=False,
        )
    return result


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
