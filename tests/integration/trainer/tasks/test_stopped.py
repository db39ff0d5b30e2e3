"""A run that was stopped keeps its worth: the best of its newest checkpoint becomes an adapter, by real commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from integration.trainer.tasks.test_training import QUANTIZATIONS
from tunery_api.findings import CHECK_PENDING, CheckName
from tunery_api.manifest import Lineage, Manifest
from tunery_api.names import PROGRESS_URL_ENV
from tunery_api.reasons import ExitCode
from tunery_api.runspec import RunResult
from tunery_common.storage import open_store
from tunery_common.storage.published_folder import verify
from tunery_common.storage.transfer import hash_file

from kit.fork_server import trainer_server
from kit.peft_reader import held_out_rows, plain_peft, single_row_loss
from kit.s3 import keys_below
from kit.story import Case, Run, command, environment, run_here, start
from tools.cluster.s3 import S3Server

LONG: dict[str, Any] = {"training": {"maxSteps": 2000, "warmup": 0}}
STEPS = 40
"""Trained before anybody stops it."""
KEPT = {"evaluation": {"everySteps": 5, "publish": "Best"}}
"""Evaluated early, so that each checkpoint has the best weights so far, of AdaLoRA, too."""
REPORT = {"data-report.json", "data-report.md"}
METHODS = [
    pytest.param({"method": "LoRA"}, "none", id="LoRA"),
    pytest.param({"method": "QLoRA"}, "nf4", id="QLoRA"),
    pytest.param({"method": "DoRA"}, "none", id="DoRA"),
    pytest.param(
        {"method": "AdaLoRA", "lora": None, "adalora": {"warmupSteps": 1, "updateEverySteps": 1}}, "none", id="AdaLoRA"
    ),
    pytest.param({"method": "IA3", "lora": None}, "none", id="IA3"),
    pytest.param({"method": "PromptTuning", "lora": None}, "none", id="PromptTuning"),
    pytest.param({"method": "PrefixTuning", "lora": None}, "none", id="PrefixTuning"),
    pytest.param({"lora": {"init": "PiSSA"}}, "none", id="PiSSA"),
]


@contextmanager
def stopped_once(stored: Callable[[], bool]) -> Iterator[None]:
    """Tell this process to stop as soon as a checkpoint is stored: it trains then. Nothing once the run is over."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.02):
            if stored():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    # A run that ended while `stored` looked has given the signal back: it would end the tests.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers), "whoever called the command is not ended with it"


def stop_here(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a manifest in this process, and stop it some steps after it began or went on."""
    before = newest_step(path)
    with stopped_once(lambda: newest_step(path) >= before + STEPS):
        return run_here("run", path, "--work-dir", path.parent / "work")


def newest_step(path: Path) -> int:
    """Return the step of the newest complete checkpoint of a manifest's run; 0 where there is none."""
    while True:
        # One that is removed meanwhile ends the walk through the folders.
        with suppress(FileNotFoundError):
            markers = (path.parent / "work").glob("checkpoints/*/step-*/complete.json")
            return max((int(marker.parent.name.removeprefix("step-")) for marker in markers), default=0)


def published(place: Path) -> Lineage:
    """Return the lineage of a place whose every digest matches."""
    return verify(open_store(place.as_uri(), None, "")).manifest.lineage


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "quantization"), METHODS)
def test_what_was_measured_best_loads_in_plain_peft(case: Case, changes: dict[str, Any], quantization: str) -> None:
    path = case(**LONG, **KEPT, **changes, onStop="Publish")
    done = stop_here(path)
    assert done.returncode == ExitCode.TERMINATED, done.stderr
    lineage = published(path.parent / "out")
    assert lineage.stopped is not None
    assert lineage.stopped.of_steps == 2000
    assert lineage.steps == lineage.stopped.after_step < 2000
    assert (lineage.step or 0) % 5 == 0
    model = plain_peft(path.parent, QUANTIZATIONS.get(quantization))
    assert single_row_loss(model, held_out_rows(path.parent)) == pytest.approx(lineage.metrics["evalLoss"], rel=0.01)
    card = (path.parent / "out" / "README.md").read_text()
    assert f"**Not finished:** stopped after step {lineage.steps} of 2000: it was told to by a signal." in card
    checks = {check.name: check for check in lineage.checks or ()}
    assert checks.keys() == {name.value for name in CheckName}
    assert "stopped before the end of training" in (checks["BaseFrozen"].message or "")
    assert checks["OnlyAdapterTrains"].result == checks["Baseline"].result == checks["BatchFits"].result == "Passed"
    assert not [check for check in checks.values() if check.message == CHECK_PENDING]
    assert "## Checklist" in card
    assert all(f"| {name.value} | {checks[name.value].result} |" in card for name in CheckName)
    assert (path.parent / "out" / "training_curves.png").exists()


@pytest.mark.slow
def test_the_same_manifest_goes_on_and_replaces_it(case: Case) -> None:
    path = case(training={"maxSteps": 200}, evaluation={"everySteps": 1000}, onStop="Publish")
    said = stop_here(path).stdout
    stopped = published(path.parent / "out")
    assert stopped.stopped is not None
    assert STEPS <= stopped.stopped.after_step < 200
    assert "evalLoss" not in stopped.metrics, "nothing was measured, and nothing is said"
    assert "| Evaluation loss | not measured after step" in (path.parent / "out" / "README.md").read_text()
    assert "run the same manifest again" in said
    stop_here(path)
    later = published(path.parent / "out").stopped
    assert later is not None
    assert later.after_step > stopped.stopped.after_step, "a second stop publishes what there is by then"
    again = run_here("run", path, "--work-dir", path.parent / "work")
    assert again.returncode == ExitCode.OK, again.stderr
    assert "Resuming from the checkpoint" in again.stdout
    whole = published(path.parent / "out")
    assert (whole.stopped, whole.steps) == (None, 200)
    assert "Not finished" not in (path.parent / "out" / "README.md").read_text()
    assert "has published before" in run_here("run", path, "--work-dir", path.parent / "work").stdout


@pytest.mark.slow
def test_by_the_keyboard_and_only_where_it_is_asked_for(case: Case) -> None:
    path = case(**LONG)
    running = start(path)
    while not newest_step(path):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == ExitCode.TERMINATED
    assert "Stopped; the checkpoint is stored." in said
    assert not (path.parent / "out").exists()
    again = case(**LONG, onStop="Publish")
    stop_here(again)
    assert published(path.parent / "out").stopped is not None, "asking for it makes no other run of the same manifest"


@pytest.fixture
def killed_once(case: Case) -> Path:
    """Returns a manifest whose first run was killed after it had stored a checkpoint."""
    path = case(training={"maxSteps": 60}, onStop="Publish")
    running = start(path)
    while not newest_step(path):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.communicate()
    return path


@pytest.mark.slow
def test_as_a_run_goes_on_what_is_stored_is_published(killed_once: Path) -> None:
    step = newest_step(killed_once)
    running = start(killed_once)
    assert running.stdout is not None
    running.stdout.readline()  # preflight has spoken: training has not begun
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == ExitCode.TERMINATED, said
    assert "Told to stop: publishing what the newest checkpoint holds." in said
    assert "run the same manifest again" in said
    stopped = published(killed_once.parent / "out").stopped
    assert stopped is not None
    assert (stopped.after_step, stopped.of_steps) == (step, 60)


@pytest.mark.slow
def test_while_the_result_is_written_what_is_stored_is_published(killed_once: Path) -> None:
    running = start(killed_once)
    written = killed_once.parent / "work" / "result" / "adapter_model.safetensors"
    while not written.exists():
        assert running.poll() is None
        time.sleep(0.001)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == ExitCode.TERMINATED, said
    assert published(killed_once.parent / "out").steps == 60
    again = run_here("run", killed_once, "--work-dir", killed_once.parent / "work")
    assert again.returncode == ExitCode.OK, again.stderr
    assert published(killed_once.parent / "out").stopped is None


def test_where_nothing_is_stored_it_is_said_that_nothing_is_published(case: Case) -> None:
    path = case(**LONG, onStop="Publish")
    running = start(path)
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == ExitCode.TERMINATED, said
    assert "Nothing is published: no checkpoint is stored yet.\nTold to stop: ending at once." in said
    assert not (path.parent / "out").exists()


@pytest.mark.slow
def test_whoever_reads_along_may_end_first(case: Case) -> None:
    """A terminal's Ctrl-C reaches all of a pipe, and `tee` is gone before the run has stored its checkpoint."""
    path = case(**LONG, onStop="Publish")
    running = start(path)
    assert running.stdout is not None
    while newest_step(path) < STEPS:
        assert running.stdout.readline()
    running.stdout.close()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) == ExitCode.TERMINATED
    assert published(path.parent / "out").stopped is not None


@pytest.mark.slow
def test_two_signals_close_together_are_one(killed_once: Path) -> None:
    running = start(killed_once)
    assert running.stdout is not None
    running.stdout.readline()
    for _ in range(3):
        running.send_signal(signal.SIGINT)
        time.sleep(0.03)
    said, _ = running.communicate(timeout=120)
    assert (running.returncode, "Traceback" in said) == (ExitCode.TERMINATED, False), said
    assert published(killed_once.parent / "out").stopped is not None


@pytest.mark.slow
def test_what_is_published_is_not_said_to_be_nothing(case: Case) -> None:
    running = start(case(onStop="Publish"))
    assert running.stdout is not None
    assert next(line for line in running.stdout if line.startswith("Published"))
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode in (ExitCode.OK, ExitCode.TERMINATED), said
    assert "Nothing is published" not in said


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_published(killed_once: Path) -> None:
    for marker in (killed_once.parent / "work").glob("checkpoints/*/step-*/complete.json"):
        file = marker.parent / "trainable.safetensors"
        tensors = load_file(file)
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, file)
        content = json.loads(marker.read_text())
        content["files"][file.name] |= {"sha256": hash_file(file), "size": file.stat().st_size}
        marker.write_text(json.dumps(content))
    running = start(killed_once)
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert "LossDiverged: the weights of step" in said
    assert not (killed_once.parent / "out").exists()


@pytest.mark.slow
def test_worse_than_asked_for_is_rejected(case: Case) -> None:
    path = case(**LONG, evaluation={"everySteps": 5, "minImprovement": 0.99}, onStop="Publish")
    done = stop_here(path)
    earlier = published(path.parent / "out-rejected").stopped
    done = stop_here(path)
    assert done.returncode == ExitCode.USER_ERROR
    later = published(path.parent / "out-rejected").stopped
    assert earlier is not None
    assert later is not None
    assert earlier.after_step < later.after_step
    assert "NotImproved: the evaluation loss went from" in done.stderr
    assert not (path.parent / "out" / "manifest.json").exists()
    assert {file.name for file in (path.parent / "out-rejected").iterdir()} >= REPORT | {
        "curve.jsonl",
        "training_curves.png",
    }
    assert not (path.parent / "out-report").exists()
    lineage = published(path.parent / "out-rejected")
    assert lineage.stopped is not None
    assert lineage.rejected is not None


def test_a_stop_of_the_manifest_is_for_a_cluster(case: Case) -> None:
    done = run_here("run", case(stop="enough"))
    assert done.returncode == ExitCode.USER_ERROR
    assert "spec.stop: works in a cluster only; press Ctrl-C here, with onStop: Publish to keep it" in done.stderr


# As the operator has it done


@pytest.fixture
def stopped_run(run_file: Run, tmp_path: Path, s3_server: S3Server) -> Callable[..., Path]:
    """Trains until a checkpoint is stored, as a pod that is told to end; gives the run.json of the publishing Job."""

    def make(**changes: Any) -> Path:
        blocks = {**LONG, **KEPT, **changes}
        prefix = f"{tmp_path.name}/checkpoints/"
        own = {"reportUri": f"s3://adapters/{tmp_path.name}/reports"}
        with stopped_once(lambda: any(key.endswith("complete.json") for key in keys_below(s3_server, prefix))):
            done = run_here("train", run_file(own=own, **blocks))
        assert done.returncode == ExitCode.TERMINATED, done.stderr
        reports = keys_below(s3_server, f"{tmp_path.name}/reports/")
        assert {f"{tmp_path.name}/reports/{name}" for name in ("curve.jsonl", "training_curves.png")} <= set(reports)
        assert f"\nCurve      s3://adapters/{tmp_path.name}/reports/curve.jsonl\n" in done.stdout
        shutil.rmtree(tmp_path / "work")
        return run_file(**blocks, own=own | {"stop": "the loss is low enough"})

    return make


def say(path: Path, words: Path, task: str = "publish") -> tuple[int, RunResult]:
    """Run a container's command and return its exit code and its last word."""
    done = run_here(task, path, TUNERY_TERMINATION_PATH=str(words))
    return done.returncode, RunResult.model_validate_json(words.read_bytes())


@pytest.mark.slow
def test_it_is_published_once_however_often_it_is_killed(
    stopped_run: Callable[..., Path], tmp_path: Path, s3_server: S3Server
) -> None:
    path, out = stopped_run(), f"{tmp_path.name}/out/"
    client = s3_server.client()
    # Of the base only what says how it is built: its weights are never read.
    client.put_object(Bucket="models", Key=f"{tmp_path.name}/model.safetensors", Body=b"not a tensor")
    for _ in range(2):
        publishing = trainer_server().popen(command("publish", path), env=environment())
        while not keys_below(s3_server, out):
            assert publishing.poll() is None
            time.sleep(0.005)
        publishing.kill()
        publishing.wait()
    code, said = say(path, tmp_path / "words")
    assert (code, said.failure) == (ExitCode.OK, None)
    assert said.adapter is not None
    assert said.metrics is not None
    assert said.stopped_after_step is not None
    assert said.checkpoint is not None, "another job may go on from it"
    assert said.checkpoint.step == said.stopped_after_step
    manifest = client.get_object(Bucket="adapters", Key=f"{out}manifest.json")["Body"].read()
    assert set(Manifest.model_validate_json(manifest).files) >= REPORT
    assert said.dataset is not None
    assert said.dataset.report == f"{said.adapter.uri}/data-report.md"
    assert not keys_below(s3_server, f"{tmp_path.name}/reports/"), "it lies beside the adapter now"
    stopped = Manifest.model_validate_json(manifest).lineage.stopped
    assert str(stopped) == f"stopped after step {said.stopped_after_step} of 2000: the loss is low enough"
    assert f"{out}.tunery-claim.json" not in keys_below(s3_server, out)
    assert say(path, tmp_path / "words") == (code, said), "a rerun says it again"
    assert client.get_object(Bucket="adapters", Key=f"{out}manifest.json")["Body"].read() == manifest
    assert say(path, tmp_path / "words", "report")[1].stopped_after_step == said.stopped_after_step


@pytest.mark.slow
def test_a_run_without_a_checkpoint_has_nothing_to_publish(run_file: Run, tmp_path: Path) -> None:
    code, said = say(run_file(), tmp_path / "words")
    assert code == ExitCode.USER_ERROR
    assert said.failure is not None
    assert said.failure.reason == "CheckpointMissing"
    assert "there is nothing to publish: the run has stored no checkpoint at s3://" in said.failure.message


@pytest.mark.slow
def test_what_was_not_measured_is_no_improvement_where_one_is_asked_for(
    stopped_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = stopped_run(evaluation={"minImprovement": 0.01})
    _, said = say(path, tmp_path / "words")
    assert said.failure is not None
    assert said.failure.reason == "NotImproved"
    assert "was not measured, and spec.evaluation.minImprovement asks for 0.01" in said.failure.message
    assert said.rejected_adapter is not None
    assert said.stopped_after_step is not None
    assert said.adapter is None


@pytest.mark.slow
def test_its_checklist_is_posted_with_each_checkpoint(
    stopped_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["trainerStatus"])
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(PROGRESS_URL_ENV, f"http://127.0.0.1:{server.server_port}/")
        path = stopped_run()
        monkeypatch.delenv(PROGRESS_URL_ENV)
        server.shutdown()
    _, said = say(path, tmp_path / "words")
    assert posts[-1]["checkpoint"]["step"] == said.stopped_after_step
    assert posts[-1]["checks"] == [each.to_json_dict() for each in said.checks or ()]
    assert not [each for each in posts[-1]["checks"] if each.get("message") == CHECK_PENDING]


@pytest.mark.slow
def test_a_finished_result_is_said_again_and_not_replaced(run_file: Run, tmp_path: Path) -> None:
    """As where the stop came while the pod had just published."""
    code, trained = say(run_file(), tmp_path / "words", "train")
    assert code == ExitCode.OK
    code, said = say(run_file(own={"stop": "enough"}), tmp_path / "words")
    assert code == ExitCode.OK
    assert said.adapter == trained.adapter
    assert said.stopped_after_step is None


@pytest.mark.slow
def test_a_report_that_is_gone_keeps_nothing_from_being_published(
    stopped_run: Callable[..., Path], tmp_path: Path, s3_server: S3Server
) -> None:
    path, client = stopped_run(), s3_server.client()
    for key in keys_below(s3_server, f"{tmp_path.name}/reports/"):
        client.delete_object(Bucket="adapters", Key=key)
    code, said = say(path, tmp_path / "words")
    assert (code, said.failure) == (ExitCode.OK, None)
    assert said.dataset is not None
    assert said.dataset.report is None


@pytest.mark.slow
def test_another_base_is_refused(stopped_run: Callable[..., Path], tmp_path: Path, s3_server: S3Server) -> None:
    path = stopped_run()
    client, key = s3_server.client(), f"{tmp_path.name}/config.json"
    config = json.loads(client.get_object(Bucket="models", Key=key)["Body"].read())
    client.put_object(Bucket="models", Key=key, Body=json.dumps({**config, "hidden_size": 32}).encode())
    _, said = say(path, tmp_path / "words")
    assert said.failure is not None
    assert said.failure.reason == "InvalidSpec"
    assert not keys_below(s3_server, f"{tmp_path.name}/out/")


@pytest.mark.slow
def test_the_newest_weights_are_those_of_the_checkpoint(
    stopped_run: Callable[..., Path], tmp_path: Path, s3_server: S3Server
) -> None:
    """Where nothing was measured: what a resume would go on from."""
    path = stopped_run(evaluation={})
    code, said = say(path, tmp_path / "words")
    assert code == ExitCode.OK
    client = s3_server.client()
    checkpoint, adapter = tmp_path / "trainable", tmp_path / "adapter"
    step = said.stopped_after_step or 0
    prefix = f"{tmp_path.name}/checkpoints/u-1/step-{step:06}"
    client.download_file("adapters", f"{prefix}/trainable.safetensors", str(checkpoint))
    client.download_file("adapters", f"{tmp_path.name}/out/adapter_model.safetensors", str(adapter))
    trained = {name.replace(".default", ""): tensor for name, tensor in load_file(checkpoint).items()}
    saved = load_file(adapter)
    assert set(trained) == set(saved)
    assert all(torch.equal(trained[name], saved[name]) for name in saved)
