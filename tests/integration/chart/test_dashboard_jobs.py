"""The dashboard of jobs: each expression reads what the operator tells, by labels that it has."""

from __future__ import annotations

import json
import re

import promql_parser as promql
import pytest
from prometheus_client.metrics import MetricWrapperBase

from integration.chart.test_dashboard import Json, grouped, selectors
from integration.chart.test_render import names_of_metrics
from tunery_operator import metrics

from kit.chart.rendering import CHART, Helm

DASHBOARD: Json = json.loads((CHART / "dashboards" / "jobs.json").read_text())
VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$namespace": ".*"}
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
OF_STATE = {
    "tunery_objects": {"kind", "namespace", "phase"},
    "tunery_watch_age_seconds": {"resource"},
    "tunery_work_queue_oldest_seconds": set[str](),
}
"""What is looked at when it is asked for, with its labels."""


def labels() -> dict[str, set[str]]:
    """Return the labels of each series of the operator, by the name that Prometheus gives it."""
    known = dict(OF_STATE)
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            told = set(metric._labelnames)
            known |= {f"{metric._name}_total": told, metric._name: told, f"{metric._name}_bucket": told | {"le"}}
    return known


@pytest.mark.parametrize(("title", "text"), EXPRESSIONS)
def test_each_expression_reads_what_there_is_by_labels_that_it_has(title: str, text: str) -> None:
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    expression, known = promql.parse(text), labels()
    read = selectors(expression)
    assert read
    for each in read:
        assert re.sub("_bucket$", "", str(each.name)) in names_of_metrics(), title
        assert {matcher.name for matcher in each.matchers.matchers} <= known[str(each.name)], title
    for by, inner in grouped(expression):
        assert all(by <= known[str(each.name)] for each in inner), title


def test_both_dashboards_are_brought_as_their_files_have_them(helm: Helm) -> None:
    brought = helm.render("metrics.dashboard.enabled=true", "serving.dashboard.enabled=true").dashboards()
    found = {name: json.loads(text) for config in brought for name, text in config["data"].items()}
    assert found["tunery-jobs.json"] == DASHBOARD
    assert {board["uid"] for board in found.values()} == {"tunery-jobs", "tunery-serving"}
    assert len({config["metadata"]["name"] for config in brought}) == 2
    assert all(config["metadata"]["labels"]["grafana_dashboard"] == "1" for config in brought)


def test_panels_do_not_lie_on_each_other_and_each_says_what_it_shows() -> None:
    seen: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & seen, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"]
        seen |= cells
