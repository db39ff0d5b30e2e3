"""The checks for a GPU work, as far as a CPU can show; and no case is lost, whatever one of them does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode
from tunery_trainer.process.environment import VISIBLE_ENV
from tunery_trainer.team.team import Team

from gpu import running
from gpu.carried import NAMES, install
from gpu.registry import CHECKS, ROOT, Entry
from gpu.running import Report, Request, run
from gpu.verdicts import Machine

Json = dict[str, Any]

GPU_ONLY = {"attention", "peak", "evaluation", "speed", "faults", "steps-Float16"}
"""What these find on a CPU means nothing: none of their cases may pass there."""
SAME_ANYWHERE = {"packing", "preferences", "steps-BFloat16", "steps-Float32", "resume", "loading", "story"}

UNRULY = """
import os, time
from gpu.verdicts import Case, Check, Outcome, Verdict

def ends(machine):
    os._exit(9)

def raises(machine):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def sleeps(machine):
    time.sleep(60)

def fine(machine):
    print("not for the report")
    return Outcome(Verdict.PASSED, {"figure": float("inf")})

CASES = {"ends": ends, "raises": raises, "sleeps": sleeps, "fine": fine}
CHECK = Check("unruly", lambda machine: {name: Case(run, needs_gpu=name == "fine") for name, run in CASES.items()})
"""


def report_of(folder: Path) -> Json:
    found: Json = json.loads((folder / "gpu.json").read_text())
    return found


def command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gpu", "--out", str(folder), *options]
    return subprocess.run(line, cwd=ROOT / "tests", capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_every_check_runs_in_tiny_shapes_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = command(tmp_path, "--dry")
    report = report_of(tmp_path)
    verdicts = {check: {said["verdict"] for said in cases.values()} for check, cases in report["checks"].items()}
    assert done.returncode == 0, (done.stdout[-2000:], (tmp_path / "log.txt").read_text()[-2000:])
    assert set(verdicts) == set(CHECKS)
    assert {check for check in verdicts if verdicts[check] == {"needs a GPU"}} == GPU_ONLY
    assert {check for check in verdicts if verdicts[check] == {"passed"}} == SAME_ANYWHERE
    environment = {name: said["verdict"] for name, said in report["checks"]["environment"].items()}
    assert environment == {"versions": "passed", "card": "needs a GPU", "head": "needs a GPU"}
    several = {name: said["verdict"] for name, said in report["checks"]["together"].items()}
    assert {name for name, verdict in several.items() if verdict == "passed"} == {
        "a base in parts, 16 bits",
        "a base in parts, NF4",
    }
    assert verdicts["together"] == {"passed", "needs a GPU"}
    assert verdicts["learning"] == {"not given"}
    assert verdicts["merging"] == {"not offered"}
    assert report["dry"] is True
    assert all(said["dry"] is True for cases in report["checks"].values() for said in cases.values())


@pytest.fixture
def unruly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A request for a check whose cases do what they must not."""
    module = tmp_path / "packages" / "gpu" / "checks" / "unruly.py"
    module.parent.mkdir(parents=True)
    module.write_text(UNRULY)
    monkeypatch.setattr(running, "CHECKS", {"unruly": Entry("unruly")})
    monkeypatch.setattr(running, "_DRY_SECONDS", 4.0)
    return Request(tmp_path, ("unruly",), dry=True, packages=(tmp_path / "packages",))


@pytest.mark.slow
def test_a_case_that_takes_the_process_with_it_costs_no_other(unruly: Request) -> None:
    run(unruly, Report(unruly.out / "gpu.json", None, dry=True))
    cases = report_of(unruly.out)["checks"]["unruly"]
    found = {name: (said["verdict"], said["words"]) for name, said in cases.items()}
    assert found == {
        "ends": ("failed", "the process ended with 9"),
        "raises": (
            "failed",
            "GPUFault: the GPU failed: CUDA error: an illegal memory access was encountered",
        ),
        "sleeps": ("failed", "it took too long"),
        "fine": ("needs a GPU", ""),
    }
    assert cases["fine"]["figures"] == {"figure": "inf"}
    log = (unruly.out / "log.txt").read_text()
    assert "not for the report" in log
    assert "RuntimeError: CUDA error" in log


def test_a_later_run_goes_on_where_the_time_was_over(unruly: Request) -> None:
    report = Report(unruly.out / "gpu.json", None, dry=True)
    for name in ("ends", "raises", "sleeps"):
        report.note("unruly", name, {"verdict": "passed", "words": "of the run before"})
    report.expect("unruly", ["ends", "raises", "sleeps", "fine"])
    assert report_of(unruly.out)["checks"]["unruly"]["fine"] == {"verdict": "not reached"}
    run(unruly, Report(unruly.out / "gpu.json", None, dry=True))
    cases = report_of(unruly.out)["checks"]["unruly"]
    assert {said["words"] for said in cases.values()} == {"of the run before", ""}
    assert cases["fine"]["verdict"] == "needs a GPU"


def test_the_time_of_the_whole_run_ends_it_and_blames_no_case(unruly: Request) -> None:
    report = Report(unruly.out / "gpu.json", None, dry=True)
    for name in ("ends", "raises"):
        report.note("unruly", name, {"verdict": "passed", "words": ""})
    report.expect("unruly", ["ends", "raises", "sleeps", "fine"])
    run(Request(unruly.out, unruly.checks, dry=True, budget=2.5, packages=unruly.packages), report)
    cases = report_of(unruly.out)["checks"]["unruly"]
    assert {name: said["verdict"] for name, said in cases.items()} == {
        "ends": "passed",
        "raises": "passed",
        "sleeps": "not reached",
        "fine": "not reached",
    }


def test_figures_of_a_gpu_are_never_mixed_with_those_of_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"dry": False, "checks": {}}))
    done = command(tmp_path, "--dry", "--only", "merging")
    assert done.returncode == 1
    assert "name another --out" in done.stderr
    assert report_of(tmp_path) == {"dry": False, "checks": {}}


def test_what_is_carried_is_locked_and_found_by_its_version(tmp_path: Path) -> None:
    lock = (ROOT / "trainer-image" / "uv.lock").read_text()
    assert [name for name in NAMES if f'name = "{name}"\n' not in lock] == []
    (tmp_path / "wheels").mkdir()
    with pytest.raises(SystemExit, match="make gpu-wheels"):
        install(tmp_path / "wheels", tmp_path / "site")


def test_what_needs_two_gpus_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu.checks import together
    from gpu.verdicts import Verdict

    monkeypatch.setattr(together, "devices_of", lambda machine: 1)
    machine = Machine(False, tmp_path)
    cases = {name: case for name, case in together.CHECK.cases(machine).items() if not name.startswith("a base")}
    assert len(cases) == 8
    for case in cases.values():
        outcome = case.run(machine)
        assert (outcome.verdict, outcome.words) == (Verdict.NEEDS_GPU, "needs 2 GPUs, this machine has 1")


@pytest.mark.parametrize(
    ("given", "count", "shown"),
    [
        ({}, 1, {}),
        ({}, 3, {running.FIRST: "0", running.ALL: "0,1,2"}),
        ({running.FIRST: "5,7"}, 8, {running.FIRST: "5", running.ALL: "5,7"}),
        ({running.FIRST: "5"}, 8, {}),
        ({running.FIRST: ""}, 8, {}),
    ],
)
def test_a_check_sees_the_first_of_several_gpus(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], count: int, shown: dict[str, str]
) -> None:
    """The Trainer would spread a loop of one process over all that it sees."""
    monkeypatch.setattr(running, "_count", lambda: count)
    assert running.shown_first(given) == shown
    assert running.ALL == VISIBLE_ENV


@pytest.mark.slow
def test_what_a_check_starts_lives_and_is_found(tmp_path: Path) -> None:
    """The trainer ends a process whose parent is another one than it is told; who follows has a session of its own."""
    from tunery_trainer.crew.causes import Causes
    from tunery_trainer.crew.crew import Crew
    from tunery_trainer.process.place import Place
    from tunery_trainer.tasks.following import leave

    from gpu import killed, ranks

    run = killed.start(Machine(True, tmp_path), tmp_path / "none.yaml", "first")
    alone = ranks.start(Place(), tmp_path / "none.pickle", tmp_path)
    try:
        with Crew(Place(devices=2), run.work / "crew", Causes(leave)) as crew:
            crew.start(None)
            assert len(run.others()) == 1
        assert run.process.wait(60) == ExitCode.USER_ERROR, run.log.read_text()
        assert run.left() == []
        assert alone.wait(60) == 1
    finally:
        run.end()
        alone.kill()
        alone.wait()
    assert "none.pickle" in (tmp_path / "failure-0").read_text()


@pytest.mark.slow
def test_the_process_that_fails_by_itself_is_blamed_and_ends_all(tmp_path: Path) -> None:
    from gpu.ranks import together

    with pytest.raises(RuntimeError, match="process 1: InternalError: ZeroDivisionError: integer"):
        together(Machine(True, tmp_path), 2, divided)


def divided(_: Machine, team: Team) -> int:
    """Wait for the other one, which fails."""
    share = 1 // (1 - team.rank)
    return sum(team.gather(share))


@pytest.mark.slow
def test_a_kernel_that_lets_examples_read_each_other_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks can fail: with attention over the whole row, as a wrong kernel would have it."""
    from tunery_trainer.model import attention

    from gpu.checks import attention as attention_check
    from gpu.checks import packing as packing_check
    from gpu.verdicts import Verdict

    by_example = attention._on_cpu
    machine = Machine(True, tmp_path)
    compare = attention_check.CHECK.cases(machine)["Llama-3.1-8B"].run
    packed = packing_check.CHECK.cases(machine)["by example"].run
    assert (compare(machine).verdict, packed(machine).verdict) == (Verdict.PASSED, Verdict.PASSED)

    def whole_row(flat: Any, ends: Any, *rest: Any) -> Any:
        return by_example(flat, ends[[0, -1]], *rest)

    monkeypatch.setattr(attention, "_on_cpu", whole_row)
    assert compare(machine).words == "it is not the masked attention"
    assert "one example reads another" in packed(machine).words
