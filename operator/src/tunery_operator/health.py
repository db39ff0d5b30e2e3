"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tunery_operator.kube.cache import Cache
from tunery_operator.queue import WorkQueue
from tunery_operator.watches import WatchAges


class StateCollector(Collector):
    """The gauges that are read when someone asks: queue, watches, objects."""

    def __init__(self, cache: Cache, queue: WorkQueue, ages: WatchAges) -> None:
        self._cache = cache
        self._queue = queue
        self._ages = ages

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        yield GaugeMetricFamily("tunery_queue_depth", "Objects that wait for their reconcile.", self._queue.depth)
        yield GaugeMetricFamily(
            "tunery_queue_oldest_seconds", "Seconds that the oldest of them has waited.", self._queue.oldest_age
        )
        ages = GaugeMetricFamily("tunery_watch_age_seconds", "Seconds since a watch's last sign.", labels=["resource"])
        for resource, age in self._ages.ages().items():
            ages.add_metric([resource], age)
        yield ages
        objects = GaugeMetricFamily("tunery_objects", "Objects by kind and phase.", labels=["kind", "phase"])
        for (kind, _, phase), count in self._cache.phases().items():
            objects.add_metric([kind, phase], count)
        yield objects


def build_app(cache: Cache, queue: WorkQueue, ages: WatchAges) -> web.Application:
    """Return the application that answers probes and Prometheus."""
    collector = StateCollector(cache, queue, ages)

    async def healthz(_: web.Request) -> web.Response:
        stalled = ages.stalled()
        text = f"silent watches: {', '.join(stalled)}" if stalled else "ok"
        return web.Response(text=text, status=503 if stalled else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if ages.ready else web.Response(text="listing", status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), content_type="text/plain", charset="utf-8")

    REGISTRY.register(collector)
    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
