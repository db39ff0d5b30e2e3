"""What the gateway counts, by adapter and client: names that are known only, and forgotten with what they name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tunery_server.gateway.connections import Room
from tunery_server.gateway.usage import Usage
from tunery_server.routes import Routes

NOTHING: Final = ""
"""The adapter of a request that led to none."""


class Metrics(Collector):
    """The gateway's own metrics."""

    def __init__(self, routes: Routes, clients: Callable[[], Collection[str]], room: Room) -> None:
        self._routes = routes
        self._room = room
        self._known_clients = clients
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._used: dict[str, float] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def used(self, adapter: str) -> None:
        """Note that `adapter` is asked for now."""
        if adapter not in self._used:
            self._forget()
        self._used[adapter] = time.time()

    def requested(self, adapter: str, client: str, code: int) -> None:
        """Count a request that was answered with `code`."""
        self._requests[adapter, client, str(code)] += 1

    def took(self, adapter: str, client: str, usage: Usage | None) -> None:
        """Count the tokens of an answer."""
        if usage is not None:
            self._tokens[adapter, client, "prompt"] += usage.prompt
            self._tokens[adapter, client, "completion"] += usage.completion

    def expose(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families; prometheus_client asks."""
        self._forget()
        labels = ["adapter", "client"]
        requests = CounterMetricFamily(
            "tunery_adapter_requests", "Requests, by HTTP status (499: the client went away).", labels=[*labels, "code"]
        )
        tokens = CounterMetricFamily(
            "tunery_adapter_tokens", "Tokens of prompts and completions.", labels=[*labels, "kind"]
        )
        used = GaugeMetricFamily(
            "tunery_adapter_last_used_timestamp_seconds",
            "When an adapter was last asked for, in seconds since 1970.",
            labels=["adapter"],
        )
        served = GaugeMetricFamily(
            "tunery_adapter_served", "1 for an adapter that can be asked for.", labels=["adapter"]
        )
        in_flight = GaugeMetricFamily("tunery_requests_in_flight", "Requests that are being answered.")
        for family, counts in ((requests, self._requests), (tokens, self._tokens)):
            for key, value in sorted(counts.items()):
                family.add_metric(key, value)
        for adapter, when in sorted(self._used.items()):
            used.add_metric([adapter], when)
        for adapter in self._routes.adapters():
            served.add_metric([adapter], 1)
        in_flight.add_metric([], self._routes.in_flight())
        yield from (requests, tokens, used, served, in_flight, *self._connections())

    def _connections(self) -> Iterator[Metric]:
        here = GaugeMetricFamily("tunery_gateway_connections", "Connections of clients that are open.")
        here.add_metric([], self._room.open)
        closed = CounterMetricFamily(
            "tunery_gateway_connections_closed", "Connections that the gateway closed, by cause.", labels=["cause"]
        )
        for cause, count in self._room.closed.items():
            closed.add_metric([cause], count)
        yield from (here, closed)

    def _forget(self) -> None:
        """Leave out what is served no more: names come and go for as long as the process lives."""
        clients = {*self._known_clients(), NOTHING}
        for counts in (self._requests, self._tokens):
            for key in [key for key in counts if not (self._kept(key[0]) and key[1] in clients)]:
                del counts[key]
        for adapter in [adapter for adapter in self._used if not self._kept(adapter)]:
            del self._used[adapter]

    def _kept(self, adapter: str) -> bool:
        return adapter == NOTHING or self._routes.knows(adapter)
