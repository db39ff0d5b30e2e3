"""The job of `make try`: the demo's manifest through the trainer, with folders in place of the buckets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Final

from tunery_api.manifest import MANIFEST_NAME, Manifest
from tunery_api.measured import change_text
from tunery_api.names import PROGRESS_URL_ENV
from tunery_api.runspec import ProgressUpdate, TrainerStatus

from tools.cluster import dataset, model
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.shell import CommandFailed
from tools.demo.answers import QUESTIONS, print_answers
from tools.demo.local import FOLDER, ROOT, Step, TryError, ended

MANIFEST: Final = ROOT / "docs" / "examples" / "quickstart.yaml"
LOG: Final = "trainer.log"
_MODEL: Final = f"models/{model.NAME}"
_ADAPTER: Final = "adapters/quickstart"
_LOSSES: Final = {"loss": "loss", "eval_loss": "evaluation loss"}
"""The metrics that are shown while the job runs."""
_LOG_LINES: Final = 6
_INTERVAL: Final = b'{"intervalSeconds": 1}'


def run(folder: Path = FOLDER, manifest: Path = MANIFEST) -> None:
    """Prepare model and data, run the manifest, and compare both models; everything is written to `folder`."""
    with Step(f"Prepare the model {model.NAME} and the data (half a minute the first time)"):
        prepare(folder, manifest)
    with Step(f"Fine-tune it: docs/examples/{manifest.name} with file:// in place of s3://") as step:
        train(folder, step)
    with Step("Ask the base model and the fine-tuned model"):
        answers = _ask(folder)
    print()
    print_answers(answers)
    print()
    print(loss_line(folder))
    print(f"adapter          {shown(folder / _ADAPTER)}, a PEFT folder with a model card")
    print("\nNext:")
    ask = f"(cd tests; ../{shown(folder)}/.venv/bin/python -m tools.demo.answers ../{shown(folder / _MODEL)}"
    print(f'  {ask} \\\n    ../{shown(folder / _ADAPTER)} "Are you a person?")   # a question of yours')
    again = f"(cd {shown(folder)}; .venv/bin/python -m tunery_trainer run lorajob.yaml)"
    print(f"  {again}   # train again, after you edit lorajob.yaml")
    for command, text in (
        ("make demo", "# the same LoRAJob on a local Kubernetes cluster"),
        (f"kubectl apply -f docs/examples/{manifest.name}", "# on a cluster with Tunery, with your s3:// URIs"),
    ):
        print(f"  {command:<48} {text}")


def shown(path: Path) -> str:
    """Return a path as seen from the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def prepare(folder: Path, manifest: Path) -> None:
    """Write what the job reads: model, data and manifest; the results of an earlier run are removed."""
    for name in ("models", "datasets", "adapters", "work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("models", "datasets"):
        (folder / name).mkdir(parents=True)
    try:
        (folder / _MODEL).symlink_to(model.ensure())
    except CommandFailed as error:
        raise TryError(f"the model could not be converted: {error}") from error
    dataset.write_messages(folder / "datasets" / "chatterbot.jsonl")
    (folder / "lorajob.yaml").write_text(
        manifest.read_text().replace("s3://", "file://").replace(", secretRef: {name: s3}", "")
    )


def train(folder: Path, step: Step) -> None:
    """Run the manifest with `python -m tunery_trainer run`; raises TryError with the end of its log."""
    command = [sys.executable, "-m", "tunery_trainer", "run", "lorajob.yaml", "--work-dir", "work"]
    path = folder / LOG
    step.note = "Preflight"
    with path.open("wb") as log, _progress(step) as url:
        # A session of its own: Ctrl-C ends the job at once, and stores no checkpoint.
        done = subprocess.run(
            [*ENDS_WITH_PARENT, *command],
            cwd=folder, env=os.environ | {PROGRESS_URL_ENV: url}, check=False, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        end = "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise TryError(f"the job failed with exit code {done.returncode}; the end of {shown(path)}:\n{end}")


@contextmanager
def _progress(step: Step) -> Iterator[str]:
    """Give the URL of a server that shows the trainer's progress in a step, as the operator shows it in a status."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            step.note = progress_text(ProgressUpdate.model_validate_json(body).trainer_status)
            self.send_response(200)
            self.send_header("Content-Length", str(len(_INTERVAL)))
            self.end_headers()
            self.wfile.write(_INTERVAL)

        def log_message(self, *_: object) -> None:
            """Write no access log."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def progress_text(status: TrainerStatus) -> str:
    """Return the phase, the step, the losses and the time left."""
    parts = [str(status.phase or status.doing or "")]
    if status.total_steps:
        parts.append(f"step {status.step or 0} of {status.total_steps}")
    losses = {metric.name: float(metric.value) for metric in status.metrics}
    parts += [f"{text} {losses[name]:.3f}" for name, text in _LOSSES.items() if name in losses]
    if status.estimated_remaining_seconds:
        parts.append(f"{status.estimated_remaining_seconds} s left")
    return ", ".join(filter(None, parts))


def _ask(folder: Path) -> list[dict[str, str]]:
    command = [
        sys.executable,
        "-m",
        "tools.demo.answers",
        "--json",
        *map(str, (folder / _MODEL, folder / _ADAPTER)),
        *QUESTIONS,
    ]
    done = subprocess.run(
        [*ENDS_WITH_PARENT, *command], cwd=ROOT / "tests", env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False, capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip
    if done.returncode:
        raise TryError(f"the adapter could not be loaded: {done.stderr[-1000:]}")
    answers: list[dict[str, str]] = json.loads(done.stdout)
    return answers


def loss_line(folder: Path) -> str:
    """Return the evaluation loss before and after, as the adapter's manifest has it."""
    metrics = Manifest.model_validate_json((folder / _ADAPTER / MANIFEST_NAME).read_bytes()).lineage.metrics
    change = change_text(-metrics["improvement"], metrics["improvementError"])
    return f"evaluation loss  {metrics['baseEvalLoss']:.3f} → {metrics['evalLoss']:.3f}  {change} on held-out rows"


if __name__ == "__main__":
    sys.exit(ended(run))
