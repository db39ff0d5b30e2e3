"""`make demo-serving`: serve the demo's adapter and a second one behind one OpenAI-compatible gateway."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tunery_api.kubectl_yaml import documents_of
from tunery_operator.planning.adapterserver import server_name

from kit.environment import engine_settings, images, is_existing, uri_root
from kit.installation import ROOT
from kit.jobs import Job
from kit.kubectl import Kubectl, KubectlError, wait_for
from tools.demo.__main__ import MANIFEST, cluster, installed
from tools.demo.answers import QUESTIONS
from tools.demo.jobs import begin, follow
from tools.demo.telling import NAMESPACE, Hold, console, ended, going_on, step

SERVING = ROOT / "docs" / "examples" / "serving-demo.yaml"
LABEL = "served-by=demo"
START_SECONDS = 900
MAX_TOKENS = 24
PORT = 8010
"""On this machine, in what is tried next: none that docs/serving.md forwards."""


def main() -> int:
    """Run the demo; return the exit code."""
    return ended(_demo)


def _demo() -> None:
    began = time.monotonic()
    environment = cluster()
    engine = engine_settings(environment, "vllm")
    kubectl = installed(environment, ", with an image of vLLM for CPUs as its engine", *engine)
    _serve(kubectl, uri_root(environment), images(environment)["serving.server.image"])
    console.print(f"\ntime             {time.monotonic() - began:.0f} s")


def _serve(kubectl: Kubectl, root: str, image: str) -> None:
    text = SERVING.read_text().replace("s3://", root)
    rows, parcels, server = documents_of(text)
    (first,) = documents_of(MANIFEST.read_text().replace("s3://", root))
    quickstart = _adapter(kubectl, first)
    with step(f"Apply {SERVING.relative_to(ROOT)}"):
        console.print(text, style="cyan", markup=False)
        kubectl.apply(rows, server, namespace=NAMESPACE)
        kubectl.run("label", "lorajob", quickstart.name, "-n", NAMESPACE, "--overwrite", LABEL)
    name = server["metadata"]["name"]
    base = server["spec"]["model"].get("servedName") or server["spec"]["model"]["uri"].rsplit("/", 1)[-1]
    with going_on(f"adapterserver/{name}"):
        second = _adapter(kubectl, parcels)
        with step(f"Serve: kubectl get adapterserver {name} -n {NAMESPACE} -w"):
            _follow_server(kubectl, name, {quickstart.name, second.name}, image)
        with step("Ask the base and both adapters at the same time: one mixed batch in the engine, streamed"):
            _ask_all(kubectl, name, [base, quickstart.name, second.name])
    _farewell(name, second.name)


def _adapter(kubectl: Kubectl, manifest: dict[str, Any]) -> Job:
    """Return a LoRAJob of the demo that has succeeded: the one that is there, be it done or at work, or a new one."""
    job = Job(kubectl, manifest, NAMESPACE)
    if job.status.get("phase") == "Succeeded":
        console.print(f"[bold]▸ LoRAJob {job.name} has succeeded before[/]")
        return job
    with step(f"Fine-tune {job.name}: kubectl get lorajob {job.name} -n {NAMESPACE} -w"):
        begin(job)
        follow(job)
    return job


def _follow_server(kubectl: Kubectl, name: str, wanted: set[str], image: str) -> None:
    """Print a line whenever what `kubectl get adapterserver` shows has changed, until all adapters are served.

    `image`: its replicas are of this one, so that one of an earlier demo is not asked in the moment of its end.
    """
    console.print("  " + "".join(f"{word:<14}" for word in ("PHASE", "READY", "ADAPTERS")) + "REASON")
    shown: tuple[str, ...] = ()
    hold = Hold()

    def all_served() -> bool:
        nonlocal shown
        status = (kubectl.get("adapterserver", name, NAMESPACE) or {}).get("status", {})
        row = _row(status)
        if row != shown:
            console.print("  " + "".join(f"{cell:<14}" for cell in row))
            shown = row
        hold.tell(status, kubectl, name)
        served = {each["name"] for each in status.get("adapters", []) if each["state"] == "Served"}
        return status.get("phase") == "Ready" and wanted <= served and _runs(kubectl, name, image)

    try:
        wait_for(f"AdapterServer {name}: all adapters served", all_served, START_SECONDS, every=1)
    except TimeoutError as error:
        story = kubectl.run("describe", "adapterserver", name, "-n", NAMESPACE)
        raise TimeoutError(hold.with_story(story, f"{error}; it goes on")) from error


def _runs(kubectl: Kubectl, name: str, image: str) -> bool:
    """Tell whether the operator that was just installed has looked at the server: its Deployment bears our image."""
    deployment = kubectl.get("deployment", server_name(name), NAMESPACE) or {}
    pod = deployment.get("spec", {}).get("template", {}).get("spec", {})
    return image in {container["image"] for part in ("initContainers", "containers") for container in pod.get(part, ())}


def _row(status: dict[str, Any]) -> tuple[str, ...]:
    """Return what stands in a line of the table; a server that nobody has looked at yet is Pending."""
    cells = [str(status.get(field, "")) for field in ("readyText", "adaptersText")]
    return (status.get("phase", "Pending"), *cells, _reason(status))


def _reason(status: dict[str, Any]) -> str:
    """Return what the server waits for or what stands in its way, in a word."""
    progressing: dict[str, Any] = next(
        (each for each in status.get("conditions", []) if each["type"] == "Progressing"), {}
    )
    return str((status.get("failure") or {}).get("reason") or progressing.get("reason", ""))


@dataclass
class Answer:
    """One streamed answer."""

    asked: str
    text: str = ""
    by: str = ""
    """The engine's name of what answered: an adapter's with its version."""
    first: float = 0.0
    """Seconds until the first token."""
    last: float = 0.0
    times: list[float] = field(default_factory=list)


def _ask_all(kubectl: Kubectl, server: str, models: list[str]) -> None:
    with forwarded(kubectl, f"service/{server}-server", 8000) as url:
        for question in [*QUESTIONS, "Where is parcel 77?"]:
            answers = asyncio.run(ask_together(url, models, question))
            console.print(f"  {question}")
            for answer in answers:
                by = answer.by if "@" in answer.by else f"{answer.by} (base)"
                console.print(f"    {by:<34} {answer.text}", markup=False)
            console.print(f"    {_overlap(answers)}", style="dim", markup=False)


def _overlap(answers: list[Answer]) -> str:
    """Return in a sentence how much the answers were streamed at the same time."""
    both = min(each.last for each in answers) - max(each.first for each in answers)
    tokens = sum(len(each.times) for each in answers)
    return (
        f"{tokens} chunks of {len(answers)} answers in {max(each.last for each in answers):.1f} s; for {both:.1f} s of "
        "them all were streaming"
    )


async def ask_together(url: str, models: list[str], question: str) -> list[Answer]:
    """Return the answers of several models to a question that they are asked at the same time, streamed."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        began = time.monotonic()
        try:
            return list(await asyncio.gather(*(_ask(session, url, model, question, began) for model in models)))
        except aiohttp.ClientError as error:
            raise AssertionError(f"{url} broke off: {error or type(error).__name__}") from error


async def _ask(session: aiohttp.ClientSession, url: str, model: str, question: str, began: float) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    answer = Answer(model)
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise AssertionError(f"{model}: HTTP {response.status}: {await response.text()}")
        async for event in _events(response):
            if "error" in event:
                raise AssertionError(f"{model}: {event['error']['message']}")
            answer.by = event["model"]
            delta = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if delta:
                answer.times.append(time.monotonic() - began)
                answer.text += delta
    answer.text = " ".join(answer.text.split())
    # A model may answer without a word.
    whole = answer.times or [time.monotonic() - began]
    answer.first, answer.last = whole[0], whole[-1]
    return answer


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


@contextmanager
def forwarded(kubectl: Kubectl, target: str, port: int) -> Iterator[str]:
    """Yield a URL on this machine that leads to a port of a pod or service of the demo's namespace."""
    command = ["kubectl", "port-forward", "-n", NAMESPACE, target, f":{port}"]
    process = subprocess.Popen(command, env=kubectl.environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise KubectlError(f"{' '.join(command)}: {line.strip() or 'it ended'}")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait()


def _farewell(server: str, adapter: str) -> None:
    key = LABEL.partition("=")[0]
    asked = [{"role": "user", "content": "Where is parcel 77?"}]
    question = {"model": adapter, "messages": asked, "temperature": 0, "max_tokens": MAX_TOKENS}
    console.print("\nTry next, and read docs/serving.md:")
    for line in (
        *(() if is_existing() else ('eval "$(make -s cluster-env)"',)),
        f"kubectl -n {NAMESPACE} describe adapterserver {server}",
        f"kill $FORWARD 2>/dev/null; kubectl -n {NAMESPACE} port-forward service/{server}-server {PORT}:8000 "
        ">/dev/null & FORWARD=$!; sleep 3    # again once its replica was replaced",
        f"curl -s http://127.0.0.1:{PORT}/v1/models",
        f"curl -s http://127.0.0.1:{PORT}/v1/chat/completions -H 'Content-Type: application/json' -d "
        f"'{json.dumps(question)}'",
        f"kubectl -n {NAMESPACE} apply -f docs/examples/batchinference.yaml    # a file of requests",
        f"kubectl -n {NAMESPACE} label lorajob {adapter} {key}-    # answered no more; {LABEL}: again",
        f"kubectl -n {NAMESPACE} delete adapterserver {server}    # gives its memory back",
    ):
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
