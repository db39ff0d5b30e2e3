"""The docs: links lead somewhere, commands exist, every failure reason is explained as the code has it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunery_api.findings import FINDINGS
from tunery_api.names import CHECKPOINTS_PREFIX, REPORTS_PREFIX
from tunery_api.reasons import ExitCode, FailureReason, is_retryable
from tunery_api.remedies import REMEDIES
from tunery_api.serverstatus import ServerCondition, ServerPhase
from tunery_api.status import ConditionType, Phase
from tunery_api.sweepstatus import EndReason
from tunery_operator.observed.attempt import STOPPED
from tunery_operator.status.events import CHECKPOINT_NOT_STORED, RANK_TOO_LOW, REMOVAL_UNKNOWN, TRIALS_LEFT

from kit import kubectl_yaml
from kit.environment import engine_settings
from kit.validations import PARSERS
from tools.demo.serving import LABEL

ROOT = Path(__file__).resolve().parents[3]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CURRENT = [page for page in DOCS if page.parent.name != "decisions"]
"""The pages that describe today's product; decisions describe the day of their date."""
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Return the anchors that the headings of a page give, as a forge makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", ["install.md", "operations.md"])
@pytest.mark.parametrize("prefix", [CHECKPOINTS_PREFIX, REPORTS_PREFIX])
def test_the_rights_name_every_place_of_the_bucket(page: str, prefix: str) -> None:
    assert f"`{prefix}/<namespace>/" in (ROOT / "docs" / page).read_text()


def actions_of(policies: list[Any]) -> set[str]:
    """Return the actions of S3 that the policies of AWS allow."""
    statements = [statement for policy in policies for statement in policy.get("Statement", [])]
    told = [
        action
        for each in statements
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    ]
    return {action for action in told if action.startswith("s3:")}


def test_the_policy_for_aws_allows_the_calls_that_the_code_makes_and_no_other() -> None:
    """Every call to S3 stands in a block that names the right it takes, for the message where it is refused."""
    sources = (ROOT / "trainer-image" / "common" / "src" / "tunery_common" / "storage").glob("*.py")
    made = {right for path in sources for right in re.findall(r'"(s3:[A-Za-z]+)"', path.read_text())}
    page = (ROOT / "docs" / "platforms.md").read_text()
    policies = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    assert actions_of(policies) == made
    assert made == set(re.findall(r"`(s3:[A-Za-z]+)`", OPERATIONS))


def test_the_program_that_asks_both_models_says_which_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for folders, problem in (
        (("nowhere", str(tmp_path)), "model: nowhere has no config.json"),
        ((str(tmp_path), str(tmp_path)), f"adapter: {tmp_path} has no adapter_config.json"),
    ):
        command = [sys.executable, "-m", "tools.demo.answers", *folders, "Why?"]
        done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"python -m tools.demo.answers: error: {problem}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (?:-s )?([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE))
    assert named <= targets


def manifests(page: Path) -> list[dict[str, Any]]:
    """Return the objects of our kinds in the code blocks of a page."""
    blocks = re.findall(r"^apiVersion: tunery\.dev.*?(?=^```|^YAML)", page.read_text(), re.MULTILINE | re.DOTALL)
    return [document for block in blocks for document in kubectl_yaml.load_all(block)]


@pytest.mark.parametrize("page", [page for page in DOCS if manifests(page)], ids=lambda page: page.name)
def test_every_manifest_in_the_text_is_valid(page: Path) -> None:
    for document in manifests(page):
        # file:// is what runs without a cluster take.
        spec: Any = PARSERS[document["kind"]](document, local="file://" in str(document))
        assert spec.model if document["kind"] == "AdapterServer" else spec.output.uri


def test_the_readme_says_in_its_first_screen_what_it_is_and_the_two_commands() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    assert "Kubernetes operator" in first
    assert re.search(r"^make demo", first, re.MULTILINE)
    assert re.search(r"^make test", first, re.MULTILINE)


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table below a heading of docs/operations.md, by their first cell."""
    section = OPERATIONS.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[1:]}


def test_every_failure_reason_has_remedies() -> None:
    assert set(REMEDIES) == set(FailureReason)
    assert all(REMEDIES.values())


def test_every_failure_reason_is_explained_and_the_readme_counts_them() -> None:
    assert set(table("Failure reasons")) == {reason.value for reason in FailureReason}
    assert f"one of {len(FailureReason)} documented reasons" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("reason", FailureReason)
def test_the_docs_and_the_code_agree_on_retries(reason: FailureReason) -> None:
    meaning, action, retried = table("Failure reasons")[reason.value]
    assert meaning
    assert action
    assert retried == ("yes" if is_retryable(reason) else "no")


def test_every_finding_is_explained_as_the_code_says_it() -> None:
    section = (ROOT / "docs" / "methods.md").read_text().split("\n## When it does not work\n", 1)[1]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    said = [f"| `{kind}` | {it.severity} | {it.meaning} | {it.action} |" for kind, it in FINDINGS.items()]
    assert rows[: len(said)] == said
    assert f"{len(FINDINGS)} findings" in (ROOT / "docs" / "changelog.md").read_text()


def test_every_exit_code_is_explained() -> None:
    assert set(table("Exit codes")) == {str(int(code)) for code in ExitCode}


def test_every_phase_and_condition_is_explained() -> None:
    assert set(table("Phases and conditions")) == {condition.value for condition in ConditionType}
    assert [phase.value for phase in Phase if not re.search(rf"\b{phase.value}\b", OPERATIONS)] == []


def test_every_phase_and_condition_of_a_server_is_explained() -> None:
    heading = "Phases and conditions of servers"
    assert set(table(heading)) == {condition.value for condition in ServerCondition}
    section = OPERATIONS.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    assert [phase.value for phase in ServerPhase if not re.search(rf"\b{phase.value}\b", section)] == []


# Words of Kubernetes, which the operator reads, those of events, and one of attemptHistory alone.
NO_REASONS = {"diagnosis.py", "pod_failures.py", "attempts.py", "events.py"}
NO_REASON = {
    "True",
    "False",
    "Unknown",
    "Job",
    "Pod",
    "Pending",
    "Retried",
    "NotNeeded",
    "AdapterServed",
    "AdapterFailed",
    "ServerReady",
}


def reasons_of_conditions() -> set[str]:
    """Return the reasons of conditions in the operator's sources that are no failure, nor the name of a condition."""
    source = ROOT / "operator" / "src" / "tunery_operator"
    files = [path for path in (source / "status").rglob("*.py") if path.name not in NO_REASONS]
    nodes = (
        node
        for path in [*files, source / "observed" / "attempt.py", source / "observed" / "event.py"]
        for node in ast.walk(ast.parse(path.read_text()))
    )
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    told = {each.value for kind in (ConditionType, ServerCondition, FailureReason) for each in kind}
    return {word for word in words if re.fullmatch(r"([A-Z][a-z]+)+", word)} - told - NO_REASON


def test_every_reason_of_a_condition_is_explained_with_its_condition() -> None:
    rows = table("Reasons of conditions")
    ends = {reason.value for reason in EndReason}
    assert (
        set(rows) - {CHECKPOINT_NOT_STORED, RANK_TOO_LOW, TRIALS_LEFT, REMOVAL_UNKNOWN}
        # Also the name of a condition, which reasons_of_conditions leaves out.
        == reasons_of_conditions() | ends | {STOPPED}
    )
    known = {each.value for kind in (ConditionType, ServerCondition) for each in kind}
    assert {name for row in rows.values() for name in row[0].split(", ")} <= known


def test_the_metrics_in_the_docs_are_those_of_the_code() -> None:
    calls = re.compile(r'(?:GaugeMetricFamily|Counter|Histogram|Gauge)\(\s*"(tunery_[a-z_]+)"')
    sources = (ROOT / "operator" / "src" / "tunery_operator").rglob("*.py")
    written = {name for path in sources for name in calls.findall(path.read_text())}
    documented = {re.sub(r"(_total)?(\{.*)?$", "", cell.strip("`")) for cell in table("Metrics and health")}
    assert documented == written


def test_the_first_data_of_the_quickstart_can_be_trained_on(tmp_path: Path) -> None:
    (command,) = re.findall(
        r"^for n in .*> support\.jsonl$", (ROOT / "docs" / "quickstart.md").read_text(), re.MULTILINE
    )
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    rows = [json.loads(line) for line in (tmp_path / "support.jsonl").read_text().splitlines()]
    assert len({json.dumps(row) for row in rows}) == 40
    assert {frozenset(row) for row in rows} == {frozenset({"prompt", "completion"})}


def cpus(amount: str | int) -> float:
    """Return an amount of CPU, such as 1700m, in CPUs."""
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_the_quickstart_says_how_much_cpu_the_demos_need() -> None:
    values = kubectl_yaml.load((ROOT / "charts" / "tunery" / "values.yaml").read_text())
    operator = values["operator"]["replicas"] * cpus(values["operator"]["resources"]["requests"]["cpu"])
    examples = ROOT / "docs" / "examples"
    job = kubectl_yaml.load((examples / "quickstart.yaml").read_text())["spec"]["resources"]
    _, second, server = kubectl_yaml.load_all((examples / "serving-demo.yaml").read_text())
    (gateway,) = (
        line.partition("=")[2] for line in engine_settings({"TUNERY_ENGINE_IMAGE": "e:1"}, "vllm") if ".cpu=" in line
    )
    preflight, training = cpus(values["preflight"]["resources"]["cpu"]), cpus(job["cpu"])
    served = cpus(server["spec"]["resources"]["cpu"]) + cpus(gateway)
    both = served + cpus(second["spec"]["resources"]["cpu"]) + operator
    text = " ".join((ROOT / "docs" / "quickstart.md").read_text().split())
    assert f"needs {max(preflight, training) + operator:g} free CPUs ({training:g} for the job" in text
    assert f"and {operator:g} for the operator's two replicas" in text
    assert f"`make demo-serving` needs {both:g} CPUs" in text
    assert f"keeps {served:g} CPUs until you delete it" in text


def test_the_label_that_the_serving_demo_serves_by_is_one_everywhere() -> None:
    key, _, value = LABEL.partition("=")
    _, second, server = kubectl_yaml.load_all((ROOT / "docs" / "examples" / "serving-demo.yaml").read_text())
    assert server["spec"]["adapterSelector"] == {"matchLabels": {key: value}}
    assert second["metadata"]["labels"] == {key: value}
    text = " ".join((ROOT / "docs" / "quickstart.md").read_text().split())
    assert f"It serves every LoRAJob with the label `{key}: {value}`" in text
    assert re.findall(r"label lorajob \S+ (\S+)", text) == [LABEL]
