"""The story of a sweep without a cluster: one trial after the other, then the best is published as in a cluster."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.lorajob import PreflightPolicy
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_common.errors import TuneryError
from tunery_common.storage.probe import probe
from tunery_common.storage.publisher import Published, Target, published_before
from tunery_search.summary import best
from tunery_search.trials import FINAL_ORIGIN
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process.signals import StopRequested, StopSignal
from tunery_trainer.process.trial_words import read_words
from tunery_trainer.reporting.result import result_of
from tunery_trainer.reporting.sweep_card import SWEEP_FILE
from tunery_trainer.reporting.sweep_text import sweep_table, trial_line
from tunery_trainer.resuming.kept import LOCAL_FOLDER
from tunery_trainer.sweeping.ended import STOPPED, Ended, memory_kills, status_of
from tunery_trainer.sweeping.ledger import LEDGER_FILE, TRIALS_FOLDER, held
from tunery_trainer.sweeping.process import Files, TrialProcess
from tunery_trainer.sweeping.search import Search, as_here, manifest_of
from tunery_trainer.tasks.publish_best import run_publish_best

_LOOK_SECONDS: Final = 0.5
"""Between two looks at whether a limit is reached, or somebody wants an end."""
_SAVE_SECONDS: Final = 10.0
_LINES: Final = 400
"""Of a log that are looked through for why a process ended."""


def run_sweep(spec: LoRASweepSpec, run: RunSpec, stop: StopSignal) -> RunResult:
    """Search, publish the best trial's adapter, and say what was found; a rerun goes on from where it was.

    Raises TuneryError, and StopRequested once the trial that ran has stored a checkpoint.
    """
    spec = as_here(spec)
    folder = Path(run.work_dir) / f"sweep-{run.identity.uid[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    # Trials clean up behind each other: nobody else may work in their folder.
    run = run.model_copy(update={"work_dir": str(folder / TRIALS_FOLDER)})
    with held(folder) as lock:
        search = Search.of(spec, run, folder)
        target = Target(Workspace(run).output, run.identity, spec.output.overwrite)
        done = published_before(target)
        if done is None:
            probe(target)
            _introduce(search)
            with stop.graceful():
                number = _to_its_end(search, lock, stop)
            # Looked for again: while this one searched, the same sweep may have published from another work folder.
            done = published_before(target)
            if done is None:
                return _publish_best(search, number)
        return _again(search, target, done)


def _introduce(search: Search) -> None:
    spec, known = search.spec, len(search.ledger.trials)
    print(
        f"Sweep      {search.run.identity.name}: up to {spec.max_trials} trials by {spec.sampler.type}, one at a time"
    )
    print("Pruner     none: without a cluster nothing listens to a trial's progress, but its own diagnosis")
    print(f"Trials     {search.folder / LEDGER_FILE}; what each prints is in its .log beside it", flush=True)
    if known or search.ledger.under_way:
        begun = f"; trial {search.number} was under way" if search.ledger.under_way else ""
        print(f"Goes on    {known} trials have ended{begun}", flush=True)


def _to_its_end(search: Search, lock: int, stop: StopSignal) -> int:
    """Make and train trials until no other is due, and return the number of the one to publish."""
    while True:
        decision = search.next()
        if decision.fail is not None:
            search.forgive()
            raise _failed(decision.fail)
        if stop.requested:
            search.save()
            raise StopRequested
        if search.ledger.under_way is not None:
            if search.number in decision.stop:
                search.under_way["spec"]["stop"] = decision.stop[search.number]
            _tell(search, _train(search, lock, stop))
        elif decision.publish is not None:
            search.save()
            return decision.publish
        elif (refused := search.make(decision)) is not None:
            _tell(search, refused)


def _failed(failure: Failure) -> TuneryError:
    """Return what a sweep fails with."""
    error = TuneryError(FailureReason(failure.reason), failure.message, *failure.remedies)
    error.facts.update(failure.facts)
    return error


def _tell(search: Search, row: TrialStatus) -> None:
    print(trial_line(row, best(search.trials, search.spec.objective.tolerance)), flush=True)
    if row.origin == FINAL_ORIGIN and row.state != TrialState.COMPLETE:
        print("Final      is left out, as it did not come to its end: the best trial is published", flush=True)


def _train(search: Search, lock: int, stop: StopSignal) -> TrialStatus:
    """Train the trial that is under way and return its row; raises StopRequested where that was told to end."""
    body, files = search.under_way, Files.of(search.folder, search.number)
    checked = body["spec"]["preflight"] == PreflightPolicy.SKIP
    if body["spec"].get("stop") is not None:  # a limit was reached while nobody was here
        words = read_words(files.words) if search.ledger.under_way_seconds else {}  # else of an earlier search
        left = Ended(-signal.SIGTERM, words, said=(), stopped=True, checked=checked, memory_kills=None)
        return _ended(search, left, search.ledger.under_way_seconds)
    files.manifest.write_text(json.dumps(manifest_of(body), indent=2), "utf-8")
    before, began = memory_kills(), time.monotonic()
    with TrialProcess(files, Path(search.run.work_dir), search.run.identity.name, lock) as process:
        search.trains(datetime.now(UTC))
        code = _until_it_ends(search, process, stop)
    search.trains(None)
    seconds = search.ledger.under_way_seconds + time.monotonic() - began
    if stop.requested and code in STOPPED and body["spec"].get("stop") is None:
        search.note(under_way_seconds=round(seconds, 3))
        search.save()
        raise StopRequested
    after = memory_kills()
    ended = Ended(
        code=code,
        words=read_words(files.words),
        said=_last_lines(files.log),
        stopped=process.told,
        checked=checked,
        memory_kills=None if before is None or after is None else after - before,
    )
    return _ended(search, ended, seconds)


def _ended(search: Search, ended: Ended, seconds: float) -> TrialStatus:
    """Take note of how the trial ended that is under way, remove what nobody needs of it, and return its row."""
    uid = search.under_way["metadata"]["uid"]
    row = search.end(_with_seconds(ended, seconds, search.spec.template.resources.gpus))
    _clean_up(search, uid, row)
    return row


def _until_it_ends(search: Search, process: TrialProcess, stop: StopSignal) -> int:
    """Return the exit code of the trial's process, which is told to end as a limit is reached, or somebody says so."""
    began = saved = time.monotonic()
    before = search.ledger.under_way_seconds
    while (code := process.wait(_LOOK_SECONDS)) is None:
        if stop.requested:
            process.stop()
        elif (why := search.next().stop.get(search.number)) is not None:
            search.under_way["spec"]["stop"] = why
            process.stop()
        if time.monotonic() - saved > _SAVE_SECONDS:
            saved = time.monotonic()
            search.note(under_way_seconds=round(before + saved - began, 3))
            search.save()
    search.note(under_way_seconds=before)
    return code


def _with_seconds(ended: Ended, seconds: float, gpus: int) -> dict[str, Any]:
    """Return the status of a trial with what it took; one that came not so far as to train took nothing."""
    taken = {"runSeconds": max(1, round(seconds)), "gpuSeconds": round(seconds * gpus)} if ended.trained else {}
    return {**status_of(ended), **taken}


def _last_lines(log: Path) -> list[str]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        return list(deque(lines, _LINES))


def _clean_up(search: Search, uid: str, row: TrialStatus) -> None:
    """Remove what a trial has left in the folder that it shares with the next one; nobody goes on from its state."""
    work = Path(search.run.work_dir)
    if row.state != TrialState.COMPLETE:
        shutil.rmtree(work / LOCAL_FOLDER / uid, ignore_errors=True)
    for folder in (work / "result", *(work / LOCAL_FOLDER).glob("checkpoint-*")):
        shutil.rmtree(folder, ignore_errors=True)


def _again(search: Search, target: Target, done: Published) -> RunResult:
    """Return what this very sweep has published before, `done`; made of these trials, what is not kept is removed.

    Of others, from another work folder, nothing is replaced or removed: their numbers say nothing of these.
    """
    print("This very sweep has published before: nothing is left to search", flush=True)
    rows = json.loads(target.place.read_bytes(SWEEP_FILE))["trials"]
    theirs = {row["number"]: row["adapter"]["manifestSha256"] for row in rows if "adapter" in row}
    ours = {row.number: row.adapter.manifest_sha256 for row in search.ledger.trials if row.adapter}
    record = done.manifest.lineage.sweep
    if record is not None and len(rows) == len(search.ledger.trials) and theirs.items() <= ours.items():
        return _publish_best(search, record.trial)
    print(f"It did so from another work folder, of {len(rows)} trials: their result stands at {done.uri}", flush=True)
    if search.ledger.trials:
        print(f"The {len(search.ledger.trials)} trials in {search.folder} took no part in it", flush=True)
    return result_of(done)


def _publish_best(search: Search, number: int) -> RunResult:
    """Publish the best trial's adapter, or say again that it is, and remove what is not kept."""
    found = search.found(number)
    result = run_publish_best(found)
    assert found.lora_sweep is not None  # noqa: S101 - for the type checker
    print(sweep_table(found.lora_sweep))
    print(f"Every trial stands in {search.run.output_uri.rstrip('/')}/sweep.json", flush=True)
    return result
