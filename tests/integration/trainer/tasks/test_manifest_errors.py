"""A manifest with an error: named, with its field, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.names import API_VERSION
from tunery_api.reasons import ExitCode
from tunery_api.validation import parse_lorajob
from tunery_trainer.cli import main

from kit.story import Case, environment, run_here, run_trainer, write_manifest

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "boto3", "numpy", "pyarrow", "huggingface_hub")

LEAST = {name: {"uri": f"file://{name}"} for name in ("model", "dataset", "output")}

WITH_MODULES = """
import json, sys
from tunery_trainer.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(set(sys.modules) & set(HEAVY))]))
""".replace("HEAVY", repr(HEAVY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"lora": {"rank": 0}}, "spec.lora.rank: must be at least 1, is 0", id="rank-0"),
        pytest.param({"lora": {"rnk": 8}}, "spec.lora.rnk: unknown field; did you mean rank?", id="typo"),
        pytest.param({"method": "qlora"}, "did you mean QLoRA?", id="case"),
        pytest.param({"output": {"uri": None}}, "spec.output.uri: is required without a cluster", id="no-output"),
        pytest.param(
            {"dataset": {"uri": "pvc://claim/data.jsonl"}}, "spec.dataset.uri: pvc:// works in a cluster only", id="pvc"
        ),
        pytest.param(
            {"continueFrom": {"loraJobRef": {"name": "other"}}},
            "spec.continueFrom.loraJobRef: works in a cluster only",
            id="reference",
        ),
    ],
)
def test_field_is_named_before_anything_heavy_is_imported(case: Case, changes: dict[str, Any], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH_MODULES, "run", str(case(**changes))],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[64, []]"
    reason, hint = done.stderr.strip().splitlines()[-2:]
    assert reason.startswith("InvalidSpec: ")
    assert message in reason
    assert hint == "Correct the named field, in the manifest."


PATHS = {
    "shorter-than-any-scheme": ("output", "out", "file://out"),
    "output": ("output", "./my out", "file://my%20out"),
    "dataset": ("dataset", "./chat*.jsonl", "file://chat*.jsonl"),
    "another-scheme": ("dataset", "htp://x/chat.jsonl", "file://data.jsonl"),
    "model": ("model", "/models/base", "file:///models/base"),
}


@pytest.mark.parametrize(
    ("command", "block", "uri", "place"),
    [
        pytest.param(command, *path, id=f"{command}-{name}")
        for command in ("run", "estimate", "check")
        for name, path in PATHS.items()
        if (command, path[0]) != ("check", "output")  # which publishes nothing
    ],
)
def test_without_a_cluster_a_path_is_told_as_the_uri_that_it_becomes(
    case: Case, capsys: pytest.CaptureFixture[str], command: str, block: str, uri: str, place: str
) -> None:
    path = str(case(**{block: {"uri": uri}}))
    assert main([command, path]) == ExitCode.USER_ERROR
    message = capsys.readouterr().err.strip().splitlines()[-2]
    assert f"spec.{block}.uri: must be " in message
    assert message.endswith(f", or {place} for a path on this machine, is {uri!r}")
    followed = {"apiVersion": API_VERSION, "metadata": {"name": "a"}, "spec": {**LEAST, block: {"uri": place}}}
    assert getattr(parse_lorajob(followed, local=True), block).uri == place


def test_an_empty_uri_is_called_empty_and_a_cluster_is_told_of_no_files() -> None:
    for uri, said in {"": "must not be empty", "out": "must be s3://bucket/prefix, is 'out'"}.items():
        with pytest.raises(InvalidSpec) as refused:
            parse_lorajob({"apiVersion": API_VERSION, "spec": {**LEAST, "output": {"uri": uri}}})
        assert str(refused.value) == f"spec.output.uri: {said}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("a: [1", "is not valid YAML", id="yaml"),
        pytest.param("kind: Secret\n", "must be LoRAJob, LoRASweep or AdapterMerge", id="kind"),
        pytest.param("kind: BatchInference\n", "which run without a cluster", id="needs-a-cluster"),
        pytest.param(
            "kind: List\nitems: [{kind: LoRAJob}]\n",
            "holds List: write each of its items as a document of its own, with --- between them",
            id="list",
        ),
        pytest.param("just words", "holds nothing", id="scalar"),
        pytest.param("", "holds nothing", id="empty"),
        pytest.param(
            "kind: LoRAJob\nmetadata: {name: a}\n---\nkind: LoRAJob\nmetadata: {name: b}\n", "holds a, b", id="two"
        ),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, content: str, message: str) -> None:
    done = run_trainer("run", write_manifest(tmp_path, content))
    assert done.returncode == ExitCode.USER_ERROR
    assert message in done.stderr.splitlines()[-2]


TWO = "kind: LoRAJob\nmetadata: {name: a}\n---\nkind: LoRAJob\nmetadata: {name: b}\n"


@pytest.mark.parametrize(
    ("content", "arguments", "said", "hint"),
    [
        (TWO, (), "holds a, b", "Select one by its name, such as --name a, "),
        (TWO, ("--name", "c"), "holds a, b; none of them is called c", "Select one by its name, such as"),
        (
            TWO.replace("b}", "a}"),
            ("--name", "a"),
            "holds a, a",
            "Give each of the 2 objects a metadata.name of its own",
        ),
    ],
)
def test_which_of_several_is_asked_for_by_the_option(
    tmp_path: Path, content: str, arguments: tuple[str, ...], said: str, hint: str
) -> None:
    path = write_manifest(tmp_path, content)
    for command in ("run", "estimate", "check"):
        *_, line, told = run_here(command, path, *arguments).stderr.splitlines()
        assert said in line
        assert told.startswith(hint)


def test_missing_file(tmp_path: Path) -> None:
    done = run_trainer("run", tmp_path / "none.yaml")
    assert done.returncode == ExitCode.USER_ERROR
    reason, hint = done.stderr.splitlines()[-2:]
    assert reason == f"InvalidSpec: there is no file {tmp_path / 'none.yaml'}"
    assert hint == "Name the file that holds the LoRAJob, LoRASweep, or AdapterMerge, and run it again."


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    done = run_trainer("run", tmp_path)
    assert done.returncode == ExitCode.USER_ERROR
    reason, hint = done.stderr.splitlines()[-2:]
    assert reason == f"InvalidSpec: cannot read {tmp_path}: Is a directory"
    assert hint.startswith("Name the file")


def test_several_errors_are_told_at_once(case: Case) -> None:
    done = run_trainer("run", case(lora={"rank": 0}, training={"batchSize": 0}))
    line = done.stderr.splitlines()[-2]
    assert "spec.lora.rank" in line
    assert "spec.training.batchSize" in line


RUN = "Follow the usage: python -m tunery_trainer run [-h] [--work-dir WORK_DIR] [--name NAME] manifest.yaml"


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (
            ["run", "--nmae", "x", "job.yaml"],
            "--nmae is no option of python -m tunery_trainer run; did you mean --name?",
            RUN,
        ),
        (["run", "job.yaml", "--name=x", "--seed=3"], "--seed is no option of python -m tunery_trainer run", RUN),
        (["run", "job.yaml", "other.yaml"], "other.yaml is one argument too many", RUN),
        (["run"], "the following arguments are required: manifest.yaml", RUN),
        (
            ["estimate", "job.yaml", "--gpumemory", "24Gi"],
            "--gpumemory is no option of python -m tunery_trainer estimate; did you mean --gpu-memory?",
            "Follow the usage: python -m tunery_trainer estimate [-h] ",
        ),
        (["rnu", "job.yaml"], "there is no command rnu; did you mean run?", "Use one of preflight, train, "),
        (
            ["distill", "run.json"],
            "there is no command distill",
            "Use one of preflight, train, merge, publish-best, publish, report, run, estimate, check; "
            "python -m tunery_trainer --help describes each; or use the trainer image of the operator's version",
        ),
        (
            ["--verbose", "run", "job.yaml"],
            "--verbose is no option of python -m tunery_trainer; options of a command come after it",
            "Follow the usage: python -m tunery_trainer [-h] [--version] COMMAND",
        ),
    ],
)
def test_a_wrong_command_line_names_the_word_and_the_usage_of_its_command(
    words: list[str], problem: str, hint: str
) -> None:
    done = run_here(*words)
    assert done.returncode == ExitCode.USER_ERROR
    said, todo = done.stderr.splitlines()[-2:]
    assert said == f"InvalidSpec: {problem}"
    assert todo.startswith(hint)
