"""Where a run's curves go while it trains: W&B, MLflow, and files of TensorBoard and W&B beside the adapter."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tunery_api.runspec import Purpose, RunIdentity
from tunery_api.training import MlflowSpec, TrackingSpec, WandbSpec
from tunery_common.storage.credentials import Credentials

RUNS_FOLDER: Final = "runs"
"""Where trackers' files lie, beside the adapter."""
_WANDB_FOLDER: Final = "wandb"
"""Below it, where an offline run of W&B lies."""
_MLFLOW_PARAM_LIMIT: Final = 6000
_MLFLOW_PATIENCE: Final = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""A GPU waits meanwhile: MLflow's own, seven tries of two minutes each, would cost it half an hour."""

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place that takes metrics."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the metrics of an optimizer step."""
        ...


@dataclass(frozen=True)
class Tracked:
    """What is tracked, and how."""

    spec: TrackingSpec | None
    run: RunIdentity
    credentials: Callable[[Purpose], Credentials]
    """Returns what opens W&B or MLflow; raises TuneryError(SecretNotFound)."""
    result: Path
    """Below it TensorBoard writes, and W&B where no server takes its run: it is published."""
    goes_on_after: int = 0
    """The step of the checkpoint that the run goes on from: what an earlier attempt told of later ones is replaced."""


@contextmanager
def trackers(tracked: Tracked, parameters: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """Open what spec.tracking asks for, and close it at the end; `parameters` describes the run.

    A tracker that cannot be opened is left out with a warning.
    """
    spec = tracked.spec
    opened: list[Tracker] = []
    with ExitStack() as stack:
        if spec and spec.wandb:
            _open(stack, opened, lambda wandb=spec.wandb: _wandb(tracked, wandb, parameters))
        if spec and spec.mlflow:
            _open(stack, opened, lambda mlflow=spec.mlflow: _mlflow(tracked, mlflow, parameters))
        if spec and spec.tensorboard:
            _open(stack, opened, lambda: _tensorboard(tracked, parameters))
        yield opened


def _open(stack: ExitStack, opened: list[Tracker], start: Any) -> None:
    try:
        manager: AbstractContextManager[Tracker] = start()
        tracker = manager.__enter__()
    except Exception as error:  # noqa: BLE001 (as above: curves are worth less than the run)
        _log.warning("not tracked: %s", error)
        return
    opened.append(tracker)

    def close(*ended: Any) -> None:
        try:
            manager.__exit__(*ended)
        except Exception as error:  # noqa: BLE001 (as above: what was trained is published all the same)
            _log.warning("%s is not told that the run has ended: %s", type(tracker).__name__, error)

    stack.push(close)


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)


@contextmanager
def _wandb(tracked: Tracked, spec: WandbSpec, parameters: Mapping[str, Any]) -> Iterator[Tracker]:
    """Report to W&B; where no key is at hand, offline, into a file that is published and `wandb sync` takes."""
    import wandb

    credentials, run = tracked.credentials(Purpose.WANDB), tracked.run
    key = credentials.get("WANDB_API_KEY")
    settings: dict[str, Any] = {"silent": True, "console": "off"}
    if key and credentials.get("WANDB_BASE_URL"):
        settings["base_url"] = credentials.get("WANDB_BASE_URL")
    if key:
        settings["api_key"] = key
    started = wandb.init(
        project=spec.project,
        entity=spec.entity,
        name=run.name,
        group=run.sweep,
        id=run.uid,
        resume="allow",
        mode="online" if key else "offline",
        dir=os.environ.get("WANDB_DIR"),
        config=dict(parameters),
        settings=wandb.Settings(**settings),
    )
    folder = Path(started.dir).parent
    try:
        yield _Wandb(started)
    finally:
        started.finish()
        if not key:
            # finish() only asks that the file be closed, and returns before it is; this waits for it.
            wandb.teardown()
            _keep_offline(folder, tracked.result / RUNS_FOLDER / _WANDB_FOLDER)


def _keep_offline(run: Path, folder: Path) -> None:
    """Copy what `wandb sync` takes of an offline run; what lies beside it tells of this machine."""
    for file in run.glob("*.wandb"):
        target = folder / run.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


class _MLflow:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run_id, name, value, step=step)


@contextmanager
def _mlflow(tracked: Tracked, spec: MlflowSpec, parameters: Mapping[str, Any]) -> Iterator[Tracker]:
    """Report to an MLflow server; an attempt that resumes goes on with the run of the first."""
    from mlflow.tracking import MlflowClient

    run = tracked.run
    with _mlflow_login(tracked.credentials(Purpose.MLFLOW)):
        client = MlflowClient(tracking_uri=spec.uri)
        experiment = client.get_experiment_by_name(spec.experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(spec.experiment)
        earlier = client.search_runs([experiment_id], f"tags.`tunery.uid` = '{run.uid}'", max_results=1)
        run_id = earlier[0].info.run_id if earlier else _new_mlflow_run(client, experiment_id, run, parameters)
        status = "FAILED"
        try:
            yield _MLflow(client, run_id)
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status)


def _new_mlflow_run(client: Any, experiment_id: str, run: RunIdentity, parameters: Mapping[str, Any]) -> str:
    tags = {"tunery.uid": run.uid, "tunery.namespace": run.namespace}
    if run.sweep is not None:
        tags["tunery.sweep"] = run.sweep
    run_id: str = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
    for name, value in parameters.items():
        client.log_param(run_id, name, str(value)[:_MLFLOW_PARAM_LIMIT])
    return run_id


@contextmanager
def _mlflow_login(credentials: Credentials) -> Iterator[None]:
    """Lend MLflow its credentials, and how long it waits: it takes them from the environment only."""
    names = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    given = {name: value for name in names if (value := credentials.get(name))}
    lent = {name: value for name, value in {**_MLFLOW_PATIENCE, **given}.items() if name not in os.environ}
    os.environ.update(lent)
    try:
        yield
    finally:
        for name in lent:
            del os.environ[name]


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            side, _, rest = name.partition("_")
            self._writer.add_scalar(f"eval/{rest}" if side == "eval" else f"train/{name}", value, step)


@contextmanager
def _tensorboard(tracked: Tracked, parameters: Mapping[str, Any]) -> Iterator[Tracker]:
    """Write event files, beside those of earlier attempts."""
    from torch.utils.tensorboard import SummaryWriter

    purge = tracked.goes_on_after + 1 if tracked.goes_on_after else None
    writer = SummaryWriter(str(tracked.result / RUNS_FOLDER), purge_step=purge)
    writer.add_text("parameters", f"```json\n{json.dumps(dict(parameters), indent=2, default=str)}\n```")
    try:
        yield _TensorBoard(writer)
    finally:
        writer.close()
