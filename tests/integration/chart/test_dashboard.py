"""The dashboard of servers: Grafana and Prometheus find it and them, and each expression speaks of what is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from integration.chart.installed.test_admission_servers import plan
from tunery_operator.manifests.server import build_server_pod
from tunery_operator.planning.job import Platform
from tunery_server.gateway.connections import Room
from tunery_server.gateway.metrics import Metrics
from tunery_server.gateway.usage import Usage
from tunery_server.routes import Routes

from kit import engine_protocol
from kit.chart.rendering import CHART, NAMESPACE, Helm, HelmError, Rendered

Json = dict[str, Any]
DASHBOARD: Json = json.loads((CHART / "dashboards" / "serving.json").read_text())
PAGE = (CHART.parents[1] / "docs" / "serving.md").read_text()
UNASKED = "Nobody asked for these in 30 days"
OF_PODS = {"namespace", "pod"}
"""The labels that the Prometheus operator gives to what it scrapes from a pod."""
VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*"}


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression with the title of its panel, as Grafana sends it to Prometheus."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            yield panel["title"], text


def told() -> dict[str, set[str]]:
    """Return the labels of each series that a replica tells, by its name: those of the gateway, and of the engine."""
    routes = Routes("tiny")
    routes.serve("bot", "bot@1", "1" * 64)
    metrics = Metrics(routes, lambda: ["web"], Room())
    metrics.used("bot")
    metrics.requested("bot", "web", 200)
    metrics.took("bot", "web", Usage(1, 1))
    # That real vLLM tells the same is in the contract of tests/server.
    engine = engine_protocol.metrics("tiny", running=[], waiting=[], first_tokens=[], max_loras=1)
    texts = (metrics.expose().decode(), engine)
    families = [family for text in texts for family in text_string_to_metric_families(text)]
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def selectors(expr: promql.Expr) -> list[promql.VectorSelector]:
    """Return what an expression reads."""
    found: list[promql.VectorSelector] = []

    def visit(each: promql.Expr) -> None:
        if isinstance(each, promql.MatrixSelector):
            found.append(each.vector_selector)
        elif isinstance(each, promql.VectorSelector):
            found.append(each)

    promql.walk(expr, visit)
    return found


def grouped(expr: promql.Expr) -> list[tuple[set[str], list[promql.VectorSelector]]]:
    """Return the labels of each `by` with what is grouped by them."""
    found: list[tuple[set[str], list[promql.VectorSelector]]] = []

    def visit(each: promql.Expr) -> None:
        if isinstance(each, promql.AggregateExpr) and each.modifier is not None:
            found.append((set(each.modifier.labels), selectors(each.expr)))

    promql.walk(expr, visit)
    return found


def monitored(rendered: Rendered) -> set[str]:
    """Return the labels that series get as they are scraped."""
    (endpoint,) = rendered.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    return OF_PODS | {rule["targetLabel"] for rule in endpoint["relabelings"]}


@pytest.fixture(scope="module")
def shown(helm: Helm) -> Rendered:
    return helm.render("serving.dashboard.enabled=true", "serving.podMonitor.enabled=true")


def test_neither_is_there_unless_it_is_asked_for(rendered: Rendered) -> None:
    assert rendered.dashboards() == rendered.of("PodMonitor") == []


def test_grafanas_sidecar_finds_the_dashboard_as_the_file_has_it(shown: Rendered) -> None:
    (config,) = shown.dashboards()
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["metadata"]["namespace"] == NAMESPACE
    assert "annotations" not in config["metadata"]
    assert {name: json.loads(text) for name, text in config["data"].items()} == {"tunery-serving.json": DASHBOARD}


def test_another_sidecar_looks_for_another_label(helm: Helm) -> None:
    values = {
        "serving.dashboard.enabled": True,
        "serving.dashboard.labels": {"grafana_dashboard": None, "dashboards": "team"},
        "serving.dashboard.annotations": {"grafana_folder": "Tunery"},
    }
    (config,) = helm.render(values=values).dashboards()
    meta = config["metadata"]
    assert "grafana_dashboard" not in meta["labels"]
    assert meta["labels"]["dashboards"] == "team"
    assert meta["annotations"] == {"grafana_folder": "Tunery"}
    with pytest.raises(HelmError, match="dashboard"):
        helm.render("serving.dashboard.labels.grafana_dashboard=1")


def test_prometheus_scrapes_the_gateway_of_every_server(helm: Helm, platform: Platform) -> None:
    rendered = helm.render("serving.podMonitor.enabled=true", "serving.podMonitor.labels.release=prom")
    monitor = rendered.one("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    pod = build_server_pod(plan(platform))
    labels = pod["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    containers = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    assert endpoint["port"] in {port["name"] for each in containers for port in each.get("ports", [])}
    (relabeling,) = endpoint["relabelings"]
    # Prometheus writes what a label's name may not have as an underscore.
    known = {f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9]', '_', name)}": labels[name] for name in labels}
    assert [known[name] for name in relabeling["sourceLabels"]] == ["x"], "the AdapterServer's name"


def test_prometheus_looks_only_where_servers_may_be(helm: Helm) -> None:
    rendered = helm.render("serving.podMonitor.enabled=true", "watchNamespaces={a,b}")
    assert rendered.one("PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


@pytest.mark.parametrize(("title", "text"), list(expressions()))
def test_an_expression_speaks_of_series_and_labels_that_are_told(shown: Rendered, title: str, text: str) -> None:
    expr = promql.parse(text)
    series, of_targets = told(), monitored(shown)
    assert selectors(expr), title
    for selector in selectors(expr):
        assert selector.name in series
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= series[selector.name] | of_targets
        assert "namespace" in labels, "the choice of namespaces is for every panel"
    for by, read in grouped(expr):
        assert all(by <= series[selector.name] | of_targets for selector in read), by


def test_a_legend_names_labels_that_its_expression_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            kept = set().union(
                *(by for by, _ in grouped(promql.parse(target["expr"].replace("$__rate_interval", "5m"))))
            )
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, panel["title"]


def test_a_panel_stands_beside_the_others_and_asks_the_prometheus_that_was_chosen() -> None:
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"], panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_page_shows_the_query_of_the_table() -> None:
    (table,) = [text for title, text in expressions() if title == UNASKED]
    (block,) = re.findall(r"^```\n(\(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    plain = table.removeprefix("1000 * (").removesuffix(")").replace('{namespace=~".*"}', "")
    assert promql.parse(block).prettify() == promql.parse(plain).prettify()
