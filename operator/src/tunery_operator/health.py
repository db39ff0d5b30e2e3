"""Provide the HTTP application of the probes and of Prometheus: /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

from tunery_operator.metrics import expose

Problems = Callable[[], Sequence[str]]


def build_app(defects: Problems, troubles: Problems) -> web.Application:
    """Return the application.

    /healthz fails for `defects`, which only a restart fixes. /readyz fails for `troubles`, reasons why the cache may be
    out of date, which a restart would not fix.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _response(defects())

    async def readyz(_: web.Request) -> web.Response:
        return _response(troubles())

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = expose(request.headers.get("Accept"))
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


def _response(problems: Sequence[str]) -> web.Response:
    return web.Response(text="\n".join(problems), status=503) if problems else web.Response(text="ok")
