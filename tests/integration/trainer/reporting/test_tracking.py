"""Where the curves go: event files beside the adapter, W&B's offline files, and a real MLflow server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunery_api.reasons import ExitCode
from tunery_api.runspec import RunIdentity
from tunery_api.training import TrackingSpec, WandbSpec
from tunery_common.storage.credentials import Credentials
from tunery_trainer.process.trial_words import SWEEP_ENV, TRIAL_ENV
from tunery_trainer.reporting.trackers import Tracked, trackers

from kit.story import Case, run_here
from tools.cluster.ports import free_port

SHORT = {"maxSteps": 4}


def train(path: Path, sweep: str | None = None) -> None:
    """Run the manifest, without any key of W&B; as the trial of a sweep, where it is named."""
    trial = {TRIAL_ENV: str(path.parent / "000.json"), SWEEP_ENV: sweep} if sweep else {}
    done = run_here("run", path, "--work-dir", path.parent / "work", WANDB_API_KEY="", **trial)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "not tracked" not in done.stderr


@pytest.mark.slow
def test_tensorboard_files_are_published(case: Case) -> None:
    path = case(training=SHORT, evaluation={"everySteps": 2}, tracking={"tensorboard": True})
    train(path)
    events = EventAccumulator(str(path.parent / "out" / "runs")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/loss")] == [2, 4]
    assert max(event.value for event in events.Scalars("train/learning_rate")) > 0


def wandb_file(path: Path) -> bytes:
    """Return what is published of the only run of a manifest that W&B has followed."""
    folder = path.parent / "out" / "runs" / "wandb"
    (file,) = (each for each in folder.rglob("*") if each.is_file())
    assert (file.parent.parent, file.suffix) == (folder, ".wandb")
    assert file.parent.name.startswith("offline-run-"), "the name that `wandb sync` looks for"
    return file.read_bytes()


@pytest.mark.slow
def test_wandb_writes_offline_without_a_key(case: Case) -> None:
    path = case(training=SHORT, tracking={"wandb": {"project": "stories"}})
    train(path)
    assert b"grad_norm" in wandb_file(path)


@pytest.mark.slow
def test_wandb_groups_the_trials_of_a_sweep(case: Case) -> None:
    path = case(training=SHORT, tracking={"wandb": {"project": "stories"}})
    train(path, sweep="the-search")
    assert b"the-search" in wandb_file(path)


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Every core computes."""
    command = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    yield
    for each in burners:
        each.kill()
        each.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("busy_machine")
def test_every_offline_run_of_wandb_is_whole_when_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = RunIdentity(kind="LoRAJob", namespace="team", name="poet", uid="2f9d")
    spec = TrackingSpec(wandb=WandbSpec(project="stories"))
    for number in range(12):
        out = tmp_path / f"{number}" / "out"
        with trackers(Tracked(spec, run, lambda _: Credentials("nobody"), out), {}) as opened:
            opened[0].log({"loss": 2.5}, 1)
        assert b"loss" in wandb_file(out.parent / "job.yaml")


class MlflowServer(NamedTuple):
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on a database of its own; it takes many seconds to start."""
    port = free_port()
    url, store = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("mlflow")
    options = ["--backend-store-uri", f"sqlite:///{store}/runs.db", "--artifacts-destination", str(store)]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Its runner of jobs of its own, which nobody here has, is eight processes that ask for work all the time.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (store / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        wait_for(f"{url}/health", process, store / "log")
        yield MlflowServer(url, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_mlflow_gets_every_step_and_the_settings(case: Case, mlflow_server: MlflowServer) -> None:
    train(case(training=SHORT, tracking={"mlflow": {"uri": mlflow_server.url, "experiment": "stories"}}))
    client = MlflowClient(tracking_uri=mlflow_server.url)
    experiment = client.get_experiment_by_name("stories")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.params["lora.rank"] == "8"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_mlflow_marks_the_trials_of_a_sweep(case: Case, mlflow_server: MlflowServer) -> None:
    train(case(training=SHORT, tracking={"mlflow": {"uri": mlflow_server.url, "experiment": "a"}}), sweep="the-search")
    client = MlflowClient(tracking_uri=mlflow_server.url)
    experiment = client.get_experiment_by_name("a")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`tunery.sweep` = 'the-search'")
    assert run.info.run_name == "tiny"


@pytest.mark.slow
def test_a_server_that_goes_down_meanwhile_costs_the_rest_of_the_curves_only(
    case: Case, mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The last test of this server."""
    path = case(training={"maxSteps": 20}, tracking={"mlflow": {"uri": mlflow_server.url, "experiment": "killed"}})

    def kill_once_it_was_told_something() -> None:
        client = MlflowClient(tracking_uri=mlflow_server.url)
        while (found := client.get_experiment_by_name("killed")) is None:
            time.sleep(0.05)
        while not any(run.data.metrics for run in client.search_runs([found.experiment_id])):
            time.sleep(0.05)
        mlflow_server.kill()

    killer = threading.Thread(target=kill_once_it_was_told_something, daemon=True)
    killer.start()
    done = run_here("run", path, "--work-dir", path.parent / "work", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "MLflow is not told that the run has ended" in caplog.text
    assert (path.parent / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        path = case(training=SHORT, tracking={"mlflow": {"uri": url, "experiment": "stories"}})
        before = time.monotonic()
        done = run_here("run", path, "--work-dir", path.parent / "work", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "not tracked" in caplog.text
    # MLflow's own patience is two minutes for each of eight tries.
    assert time.monotonic() - before < 100


@pytest.mark.slow
def test_a_server_that_is_down_costs_the_curves_only(case: Case) -> None:
    path = case(training=SHORT, tracking={"mlflow": {"uri": "http://127.0.0.1:9", "experiment": "stories"}})
    done = run_here("run", path, "--work-dir", path.parent / "work", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == ExitCode.OK, done.stderr
    assert (path.parent / "out" / "manifest.json").exists()
