"""A sweep without a cluster: what it decides, what it survives, and what it says; its trials are played."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunery_api.reasons import ExitCode
from tunery_common.storage import open_store
from tunery_common.storage.published_folder import verify
from tunery_trainer.sweeping.search import Search

from kit.fork_server import trainer_server
from kit.played_sweep import play
from kit.played_trial import HANGS, KILLED, KILLED_FOR_MEMORY, LOST, LOST_REMEDIES, loss_of
from kit.story import environment, make_rows, manifest, run_here, write_rows

Rows = list[dict[str, Any]]
Sweep = Callable[..., Path]
RATE = {"path": "training.learningRate", "range": {"min": 1e-5, "max": 1e-1, "log": True}}
ALPHA = {"path": "lora.alpha", "choices": [str(2**power) for power in range(3, 10)]}
RATE_OK = {**RATE, "range": {"min": 1e-5, "max": 5e-3, "log": True}}
ALPHA_OK = {"path": "lora.alpha", "choices": ["8", "16", "32"]}
"""Of trials that come to their ends."""

RANKS = [
    {"path": "adalora.targetRank", "choices": ["4", "12"]},
    {"path": "adalora.initialRank", "choices": ["64", "12"]},
]
"""A rank of 12 is invalid as both only."""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Writes the manifest of a sweep whose trials are played, and gives its path back."""
    play(monkeypatch, tmp_path)
    monkeypatch.setattr(subprocess, "Popen", trainer_server().popen_class())
    (tmp_path / "model").mkdir()
    write_rows(tmp_path / "data.jsonl", make_rows())

    def write(*initial: tuple[float, int], **changes: Any) -> Path:
        template = {key: value for key, value in manifest(tmp_path)["spec"].items() if key != "output"}
        template["training"] = {"maxSteps": 20}
        template["lora"] = {"rank": 8}
        spec = {
            "template": template,
            "parameters": [RATE, ALPHA],
            "initial": [{"training.learningRate": f"{rate}", "lora.alpha": f"{alpha}"} for rate, alpha in initial],
            "sampler": {"type": "Random"},
            "maxTrials": len(initial),
            "output": {"uri": f"file://{tmp_path}/out"},
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        content = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "metadata": {"name": "support"}}
        path.write_text(json.dumps({**content, "spec": spec}, indent=1))
        return path

    return write


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return run_here("run", path, "--work-dir", path.parent / "work")


def known(path: Path) -> Rows:
    """Return the rows on the disk; none before there are any."""
    (file,) = list((path.parent / "work").glob("sweep-*/sweep.json")) or [None]
    rows: Rows = json.loads(file.read_text())["trials"] if file else []
    return rows


def best_of(path: Path) -> int:
    """Return the number of the trial that is published, every digest of which matches."""
    record = verify(open_store((path.parent / "out").as_uri(), None, "")).manifest.lineage.sweep
    assert record is not None
    return record.trial


@pytest.mark.slow
def test_what_a_trial_ends_as_is_its_row_and_the_sweep_goes_on(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), (1e-3, KILLED_FOR_MEMORY), (5e-2, 8), (1e-3, KILLED), (1e-3, LOST), (5e-4, 8))
    done = run(path)
    assert done.returncode == ExitCode.OK, done.stderr
    rows = known(path)
    assert [(row["state"], row.get("reason")) for row in rows] == [
        ("Complete", None),
        ("Infeasible", "OutOfMemory"),
        ("Infeasible", "LossDiverged"),
        ("Failed", "Killed"),
        ("Failed", "StorageUnavailable"),
        ("Complete", None),
    ]
    assert rows[5]["value"] == f"{loss_of(5e-4):.6g}"
    assert rows[0]["trainableParameters"] == 1000
    assert rows[0]["evaluations"] == [{"step": 80, "loss": f"{loss_of(1e-4):.6g}"}]
    assert best_of(path) == 5
    (left,) = next((path.parent / "out-trials").iterdir()).iterdir()
    assert left.name == "005"
    assert verify(open_store(left.as_uri(), None, "")).manifest.run.sweep == "support"
    lines = [line for line in done.stdout.splitlines() if re.match(r"Trial \d", line)]
    assert len(lines) == 6
    assert lines[0].startswith("Trial 000  loss 1.3, ")
    assert "best so far 1.3, trial 0; Initial: lora.alpha 64, training.learningRate 0.001" in lines[1]
    assert "; the best so far; " in lines[5]
    table = done.stdout.split("\ntrial  loss")[1]
    assert [line[:3] for line in table.splitlines()[1:3]] == ["005", "000"]
    assert "6 trials: 2 complete, 2 infeasible, 2 failed. The best is trial 5" in table
    assert f"Every trial stands in {(path.parent / 'out').as_uri()}/sweep.json" in table
    published = json.loads((path.parent / "out" / "sweep.json").read_text())
    # What was removed is not named where others read, nor is what failed trials advise; the rows that a rerun goes on
    # from stay as they were.
    assert [each["text"] for each in rows[4]["failure"]["remedies"]] == [each.text for each in LOST_REMEDIES]
    gone = [{"failure"} if row is rows[5] else {"failure", "adapter"} for row in rows]
    assert published["trials"] == [
        {key: value for key, value in row.items() if key not in left_out}
        for row, left_out in zip(rows, gone, strict=True)
    ]
    again = run(path)
    assert again.returncode == ExitCode.OK
    assert "has published before" in again.stdout
    assert known(path) == rows


@pytest.mark.slow
def test_one_work_folder_leaves_what_the_same_sweep_has_published_from_another(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), (1e-3, KILLED), (5e-4, 8), (1e-3, 8), maxTrials=2, maxFailedTrials=0)
    assert run(path).returncode == ExitCode.RETRYABLE, "one trial, and one that failed"
    before = known(path)
    path.write_text(path.read_text().replace('"maxTrials": 2', '"maxTrials": 4').replace('Trials": 0', 'Trials": 1'))
    assert run_here("run", path, "--work-dir", path.parent / "other").returncode == ExitCode.OK
    stored = {file: file.read_bytes() for file in path.parent.glob("out*/**/*") if file.is_file()}
    again = run(path)
    assert again.returncode == ExitCode.OK, again.stderr
    assert f"from another work folder, of 4 trials: their result stands at {path.parent.as_uri()}/out" in again.stdout
    assert f"The 2 trials in {path.parent / 'work'}/sweep-" in again.stdout
    assert known(path) == before
    assert {file: file.read_bytes() for file in path.parent.glob("out*/**/*") if file.is_file()} == stored


MOMENTS = (
    "work/sweep-*/sweep.json",
    "out-trials/*/000/manifest.json",
    "work/sweep-*/001.yaml",
    "out-trials/*/002/manifest.json",
    "out/.tunery-claim.json",
    "out/manifest.json",
)
"""What is written after each other."""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_with_the_same_rows(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), maxTrials=3, parameters=[RATE_OK, ALPHA_OK])
    command = [sys.executable, "-m", "kit.played_sweep", "run", str(path), "--work-dir", str(path.parent / "work")]
    before: Rows = []
    for moment in MOMENTS:
        process = trainer_server().popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while process.poll() is None and not any(path.parent.glob(moment)):
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.communicate()[0]
        after = known(path)
        assert after[: len(before)] == before, "a row that is final never changes"
        before = after
    done = run(path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert known(path) == before
    assert [(row["number"], row["state"]) for row in before] == [(number, "Complete") for number in range(3)]
    assert best_of(path) == min(before, key=lambda row: float(row["value"]))["number"]
    kept = {file.parent.name for file in (path.parent / "out-trials").rglob("*") if file.is_file()}
    assert kept == {f"{best_of(path):03d}"}
    undisturbed = path.with_name("undisturbed.yaml")
    undisturbed.write_text(path.read_text().replace("/out", "/undisturbed"))
    assert run_here("run", undisturbed, "--work-dir", path.parent / "other").returncode == ExitCode.OK
    (file,) = (path.parent / "other").glob("sweep-*/sweep.json")
    alike = [(row["origin"], row["parameters"], row["value"]) for row in json.loads(file.read_text())["trials"]]
    assert alike == [(row["origin"], row["parameters"], row["value"]) for row in before]


def test_ctrl_c_ends_the_trial_and_says_how_to_go_on(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), (1e-3, HANGS))
    before = signal.signal(signal.SIGINT, lambda *_: None)
    over = threading.Event()

    def press() -> None:
        while not over.wait(0.05):
            if any((path.parent / "work").glob("sweep-*/001.json")):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        done = run(path)
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert done.returncode == ExitCode.TERMINATED
    assert "The same manifest run again goes on" in done.stdout
    assert not (path.parent / "out" / "manifest.json").exists()
    assert [row["number"] for row in known(path)] == [0]
    (file,) = (path.parent / "work").glob("sweep-*/sweep.json")
    left = json.loads(file.read_text())
    assert left["underWay"]["metadata"]["labels"] == {"tunery.dev/trial": "001"}
    assert left["underWaySeconds"] > 0


@pytest.mark.slow
def test_the_time_of_a_sweep_ends_the_trial_that_runs_and_publishes_the_best_so_far(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep((1e-4, 8), (1e-3, HANGS), (1e-3, 8), activeDeadlineSeconds=50)
    second = path.parent / "work"
    over = property(lambda _: 100.0 if any(second.glob("sweep-*/001.json")) else 0.0)
    monkeypatch.setattr(Search, "seconds", over)
    done = run(path)
    assert done.returncode == ExitCode.OK, done.stderr
    states = [(row["state"], row.get("why")) for row in known(path)]
    assert states == [("Complete", None), ("Pruned", "the sweep reached spec.activeDeadlineSeconds")]
    assert best_of(path) == 0


@pytest.mark.slow
def test_the_best_settings_are_trained_once_more_and_take_part(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), (1e-3, 8), final={"training": {"maxSteps": 40}}, stopAfterTrialsWithoutImprovement=1)
    assert run(path).returncode == ExitCode.OK
    rows = known(path)
    assert [(row["number"], row["name"], row["origin"]) for row in rows] == [
        (0, "support-000", "Initial"),
        (1, "support-001", "Initial"),
        (2, "support-final", "Final"),
    ]
    (trained,) = (path.parent / "work").glob("sweep-*/002.yaml")
    assert yaml.safe_load(trained.read_text())["spec"]["training"]["maxSteps"] == 40


def test_a_trial_that_is_refused_is_told_and_the_best_of_the_others_is_published(sweep: Sweep) -> None:
    path = sweep(parameters=[RATE_OK, *RANKS], maxTrials=2)
    content = json.loads(path.read_text())
    spec = content["spec"]
    spec["template"] |= {"method": "AdaLoRA", "lora": {}}
    ranks = ((12, 12), (4, 64))
    spec["initial"] = [
        {"training.learningRate": "0.001", "adalora.targetRank": f"{target}", "adalora.initialRank": f"{first}"}
        for target, first in ranks
    ]
    path.write_text(json.dumps(content))
    done = run(path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert [(row["state"], row.get("reason")) for row in known(path)] == [
        ("Infeasible", "InvalidSpec"),
        ("Complete", None),
    ]
    assert re.search(
        r"^Trial 000  Infeasible, InvalidSpec; .*adalora.initialRank: is not above", done.stdout, re.MULTILINE
    )
    assert best_of(path) == 1


@pytest.mark.slow
def test_too_many_failures_by_chance_end_it_until_it_is_run_again(sweep: Sweep) -> None:
    path = sweep((1e-4, LOST), (1e-3, LOST), (1e-3, 8), (5e-4, 8), maxTrials=2, maxFailedTrials=1)
    done = run(path)
    assert done.returncode == ExitCode.RETRYABLE
    reason, hint = done.stderr.splitlines()[-2:]
    assert reason.startswith("StorageUnavailable: 2 trials failed, and spec.maxFailedTrials allows 1;")
    assert "estore the network of the played trial, and run it again. Or, in the manifest: lower " in hint
    assert run(path).returncode == ExitCode.OK
    assert best_of(path) == 2


@pytest.mark.slow
def test_more_trials_may_be_asked_for_and_the_others_are_known(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), (1e-3, KILLED), (5e-4, 8), (2e-4, 8), maxTrials=2, maxFailedTrials=0)
    assert run(path).returncode == ExitCode.RETRYABLE
    path.write_text(path.read_text().replace('"maxTrials": 2', '"maxTrials": 3'))
    done = run(path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Goes on    2 trials have ended" in done.stdout
    assert best_of(path) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"warmStartFrom": [{"name": "earlier"}]}, "spec.warmStartFrom: works in a cluster only"),
        ({"budget": {"gpuSeconds": 10}}, "spec.budget: counts the seconds of GPUs"),
        ({"output": {}}, "spec.output.uri: is required without a cluster"),
        ({"parameters": []}, "spec.parameters: names nothing to search"),
    ],
)
def test_what_cannot_be_is_said_before_any_trial(sweep: Sweep, changes: dict[str, Any], says: str) -> None:
    path = sweep(maxTrials=2, **changes)
    done = run(path)
    assert done.returncode == ExitCode.USER_ERROR
    assert done.stderr.splitlines()[-2].startswith(f"InvalidSpec: {says}")
    assert not (path.parent / "work").exists()


def test_without_optuna_it_says_what_to_install(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sweep((1e-4, 8), sampler={"type": "TPE"})
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = run(path)
    assert done.returncode == ExitCode.USER_ERROR
    said, hint = done.stderr.splitlines()[-2:]
    assert said == "InvalidSpec: spec.sampler.type: TPE needs Optuna, which is not installed for this Python"
    assert 'pip install "optuna>=5"' in hint


def test_what_lies_at_the_output_is_found_before_the_first_trial(sweep: Sweep) -> None:
    path = sweep((1e-4, 8))
    assert run(path).returncode == ExitCode.OK
    path.write_text(path.read_text().replace("0.0001", "0.001"))
    done = run(path)
    assert done.returncode == ExitCode.USER_ERROR
    assert done.stderr.splitlines()[-2].startswith("OutputExists: spec.output.uri: ")
    assert "Trial" not in done.stdout.replace("Trials", "")


def test_two_at_once_do_not_share_trials(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sweep((1e-3, HANGS))
    command = [sys.executable, "-m", "kit.played_sweep", "run", str(path), "--work-dir", str(path.parent / "work")]
    with trainer_server().popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as first:
        while not any((path.parent / "work").glob("sweep-*/000.json")):
            time.sleep(0.05)
        monkeypatch.setattr("tunery_trainer.sweeping.ledger._WAIT_SECONDS", 0.2)
        done = run(path)
        first.kill()
    assert done.returncode == ExitCode.USER_ERROR
    assert "another process runs this sweep" in done.stderr


def test_sweeps_in_one_work_folder_leave_each_others_trials_alone(sweep: Sweep) -> None:
    path = sweep((1e-3, HANGS))
    work = path.parent / "work"
    command = [sys.executable, "-m", "kit.played_sweep", "run", str(path), "--work-dir", str(work)]
    with trainer_server().popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as first:
        try:
            while not any(work.glob("sweep-*/000.json")):
                time.sleep(0.05)
            trials = played_in(next(work.glob("sweep-*/000.log")))
            left = [trials / "checkpoints" / "checkpoint-5", trials / "result"]
            for folder in left:
                folder.mkdir(parents=True)
            other = path.with_name("other.yaml")
            other.write_text(path.read_text().replace("/out", "/other").replace(f'alpha": "{HANGS}"', 'alpha": "8"'))
            assert yaml.safe_load(other.read_text())["spec"]["initial"][0]["lora.alpha"] == "8"
            assert run(other).returncode == ExitCode.OK
            assert all(folder.is_dir() for folder in left)
        finally:
            first.kill()


def played_in(log: Path) -> Path:
    """Return the folder that a played trial works in, as its log has it."""
    while (found := re.search("^works in (.*)$", log.read_text(), re.MULTILINE)) is None:
        time.sleep(0.05)
    return Path(found[1])


def test_the_data_of_a_sweep_is_checked_and_its_rules_are(sweep: Sweep) -> None:
    path = sweep((1e-4, 8))
    done = run_here("check", path)
    # The folder of the model is empty: so far it comes, and says it.
    assert done.returncode == ExitCode.USER_ERROR
    assert "spec.model.uri" in done.stderr
    path.write_text(path.read_text().replace("training.learningRate", "training.learningRat"))
    wrong = run_here("check", path)
    assert "did you mean training.learningRate" in wrong.stderr
    assert wrong.returncode == ExitCode.USER_ERROR


def test_a_check_of_a_sweep_says_what_it_would_search(sweep: Sweep) -> None:
    path = sweep((1e-4, 8), parallelTrials=2, warmStartFrom=[{"name": "earlier"}], output={})
    said = run_here("check", path).stdout.splitlines()
    assert said[:-1] == [
        "Sweep      up to 1 trials by Random, 1 at a time",
        "Space      lora.alpha: 8, 16, 32, 64, 128, 256, 512",
        "Space      training.learningRate: 0.00001 to 0.1, by factors",
        "First      Initial",
        "Here       it would not run: spec.warmStartFrom: works in a cluster only, which has the other sweeps' trials; "
        "leave it out here, or list their best values as initial",
    ]
    assert said[-1] == "Here       it would not run: spec.output.uri: is required without a cluster"


def test_a_check_reads_numbers_as_the_api_server_will(sweep: Sweep) -> None:
    path = sweep((1e-4, 8))
    text = path.read_text()
    assert "1e-05" in text
    path.write_text(text.replace("1e-05", "1e-5"))
    assert "Space      training.learningRate: 0.00001 to 0.1, by factors" in run_here("check", path).stdout
    path.write_text(text.replace("1e-05", '"1e-5"'))
    assert ".range.min: must be a number: write it without quotes, 1e-5" in run_here("check", path).stderr
    path.write_text(text.replace("1e-05", "true"))
    assert ".range.min: must be a number, is true" in run_here("check", path).stderr
