"""docs/serving.md says of the door what the door does: its routes and its metrics."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web

from server.door_kit import open_site

from projects import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text()


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
        exposed = site.door.metrics.expose().decode()
    shown = {re.sub(r'="[^"]*"', "", series) for series in re.findall(r"^(tunery_\S+) ", exposed, re.MULTILINE)}
    assert shown == set(re.findall(r"^\| `(tunery_[^`]+)` \|", PAGE, re.MULTILINE))
