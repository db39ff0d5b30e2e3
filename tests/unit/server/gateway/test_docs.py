"""docs/serving.md says of the gateway what the gateway does: routes, metrics, errors, and how soon it sees keys."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from tunery_api.adapterserver import DEFAULT_IN_BATCH, DEFAULT_LOADED
from tunery_api.reasons import FailureReason
from tunery_operator.planning.desired import ADAPTER_WAITING
from tunery_server.gateway.clients import CLIENTS_HINT

from kit.projects import ROOT
from kit.server.gateway import open_site

PAGE = (ROOT / "docs" / "serving.md").read_text()
SERVER = ROOT / "trainer-image" / "server" / "src" / "tunery_server"
CODE_AT = {"Refusal": 2, "unavailable": 0, "NotServed": 1}
"""Which argument of a call is the code of the answer."""


async def test_every_route_is_told_and_with_a_key_or_without(tmp_path: Path) -> None:
    told = {
        (method, path): row[1].strip() == "yes"
        for row in (line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| `(GET|POST) ", line))
        for method, path in re.findall(r"`(GET|POST) (\S+)`", row[0])
    }
    async with open_site(tmp_path) as site:
        app = site.runner.app
        assert isinstance(app, web.Application)
        there = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
        assert {(method, path) for method, path in told} == {
            (method, path.replace("{id:.+}", "{id}")) for method, path in there
        }
        keyless = {path for (_, path), key in told.items() if not key}
        assert keyless == {"/metrics", "/livez", "/readyz", "/healthz/engine"}


async def test_every_metric_is_told(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        await site.ask()
        exposed = site.gateway.metrics.expose().decode()
    shown = {re.sub(r'="[^"]*"', "", series) for series in re.findall(r"^(tunery_\S+) ", exposed, re.MULTILINE)}
    assert shown == set(re.findall(r"^\| `(tunery_[^`]+)` \|", PAGE, re.MULTILINE))


def answered() -> Iterator[tuple[str | None, str]]:
    """Yield the codes that the gateway's sources answer with, each with its status where that is written there.

    A reason of a failure is told as such. Words that a request waits for are constants of the loader.
    """
    yield "503", ADAPTER_WAITING
    for path in sorted([*(SERVER / "gateway").glob("*.py"), *(SERVER / "adapters").glob("*.py"), SERVER / "routes.py"]):
        text = path.read_text()
        yield from (("503", word) for word in re.findall(r'^[A-Z_]+: Final = "([A-Z][A-Za-z]+)"$', text, re.MULTILINE))
        tree = ast.parse(text)
        words = {
            node.target.id: node.value
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        for node in ast.walk(tree):
            index = CODE_AT.get(getattr(node.func, "id", "")) if isinstance(node, ast.Call) else None
            if index is None or len(node.args) <= index:
                continue
            code = words.get(getattr(node.args[index], "id", ""), node.args[index])
            if not isinstance(code, ast.Constant):
                continue
            first = node.args[0]
            status = str(first.value) if isinstance(first, ast.Constant) and index == 2 else None
            yield status, str(code.value)


def test_every_error_of_the_gateway_is_told_with_its_status() -> None:
    section = PAGE.split("\n## Errors\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if re.match(r"\| \d", line)]
    told = {
        (status, code)
        for row in rows
        for status in re.findall(r"\d{3}", row[0])
        for code in re.findall(r"`(\w+)`", row[1])
    }
    codes = set(answered())
    assert {"AdapterWaiting", "NoRoom", "model_not_found"} <= {code for _, code in codes}
    broken_off = ("503", "engine_error")  # the last event of a stream whose status was 200
    assert {each for each in codes if each[0] is not None} - told == {broken_off}
    assert {code for _, code in codes} - {code for _, code in told} == set()
    assert {code for _, code in told} - {code for _, code in codes} <= {reason.value for reason in FailureReason}


def test_how_soon_a_change_of_the_keys_counts_is_one_figure() -> None:
    (figure,) = re.findall(r"once the kubelet has brought it\s+\(within (\d+ seconds)\)", PAGE)
    assert f"within {figure}, without a restart" in CLIENTS_HINT


def test_the_least_of_loaded_adapters_is_told_where_they_are_explained_and_in_the_sizes() -> None:
    explained = PAGE.split("\n## More adapters than fit\n", 1)[1].split("```", 1)[0]
    assert f"`engine.maxLoadedAdapters` (default {DEFAULT_LOADED})" in explained
    assert f"at least `engine.maxAdaptersInBatch` (default {DEFAULT_IN_BATCH})" in " ".join(explained.split())
    sizes = PAGE.split("\n## Sizing\n", 1)[1].split("\n## ", 1)[0]
    assert "| `engine.maxLoadedAdapters` | at least `maxAdaptersInBatch`" in sizes


def test_the_namespace_of_the_examples_is_said_once_at_the_top() -> None:
    top, rest = PAGE.split("\n## ", 1)
    named = set(re.findall(r"http://[a-z-]+\.([a-z-]+)\.svc", rest))
    assert named == {"team-a"}
    assert "`kubectl config set-context --current --namespace team-a`" in top
    assert re.findall(r"kubectl -n|-n team-a", rest) == []


def test_every_question_of_the_pages_is_asked_for_the_likeliest_answer_and_has_an_end() -> None:
    """A model without sampling defaults, as the demo's, else answers by chance, and on until its length ends."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "examples").glob("*.yaml")]
    asked = [body for page in pages for body in re.findall(r"-d '(\{.*\})'", page.read_text())]
    assert len(asked) >= 3
    for body in map(json.loads, asked):
        assert body["temperature"] == 0
        assert body["max_tokens"] > 0
