"""A manifest's YAML is read as kubectl reads it, by every command alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_trainer.cli import main
from tunery_trainer.local.documents import read_documents

from kit.story import Case

# Of kubectl 1.33: kubectl annotate --local -f FILE a=b -o json.
AS_KUBECTL = {
    "1e-4": 0.0001, "1e1": 10, "1E5": 100000, "1.e-4": 0.0001, "+.5e1": 5, "1.5e1": 15, ".5": 0.5, "5.0": 5, "1.": 1,
    "1e4_0": 1e40, "1e30": 1e30, "1e": "1e", "123e": "123e", "1_000": 1000, "1_": 1, "_1": "_1", "._5": "._5",
    "1_0.5": 10.5, "010": 8, "0_8": 8, "0o10": 8, "09": 9, "0x1F": 31, "0b11": 3, "-0b11": -3, "+1": 1, "-.5": -0.5,
    "12:30": "12:30", "190:20:30.15": "190:20:30.15", "2026-11-28": "2026-11-28",
    "2026-11-28T10:00:00Z": "2026-11-28T10:00:00Z", "yes": True, "y": True, "on": True, "N": False, "off": False,
    "12345678901234567890123": 1.2345678901234568e22, "0x10000000000000000": "0x10000000000000000",
    "02000000000000000000000": 2e21, "18446744073709551615": 18446744073709551615,
    "~": None, "=": "=", '"1e-4"': "1e-4",
    "{<<: [{gpus: 0}, {gpus: 1}]}": {"gpus": 0}, "{a: 0, <<: {a: 1}}": {"a": 1}, "{<<: {a: 1}, a: 0}": {"a": 0},
    "{<<: {a: 1}, <<: {a: 2}}": {"a": 2}, "{a: 0, <<: [{a: 1}], <<: {a: 2}}": {"a": 2}, "{<<: []}": {},
    "{a: 3, <<: [&y {<<: &x {a: 1}, b: 2}, {b: 5, c: 6}, *x, *y]}": {"a": 1, "b": 2, "c": 6},
    "{a: 0, <<: {<<: {a: 2}}, b: 1}": {"a": 2, "b": 1}, '{"<<": {a: 1}}': {"<<": {"a": 1}}, "{a: 0, a: 1}": {"a": 1},
    "1e999": "1e999", "-1_0e999": "-1_0e999", "[&a 1, &a 2, *a]": [1, 2, 2], "[&a [&a 1, *a], *a]": [[1, 1], 1],
    "!foo bar": "bar", "!foo 5": "5", "!!foo ~": "~", "!foo {a: 1}": {"a": 1}, "!foo [1]": [1], "!!binary aGk=": "hi",
    "!!set {a, b}": {"a": None, "b": None}, "!!omap [a: 1]": [{"a": 1}], "!!pairs [a: 1]": [{"a": 1}],
}  # fmt: skip
RANGE = "[{path: training.learningRate, range: {min: 1e-4, max: 1e-2, log: true}}]"
SWEEP = """
apiVersion: tunery.dev/v1alpha1
kind: LoRASweep
metadata: {name: s}
spec:
  template: {model: {uri: "file://model"}, dataset: {uri: "file://rows.jsonl"}, resources: {gpus: 0}}
  output: {uri: "file://out"}
"""


@pytest.mark.parametrize("text", AS_KUBECTL)
def test_a_value_is_what_kubectl_takes_it_for(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(f"value: {text}\n")
    (document,) = read_documents(path)
    assert json.dumps(document["value"], sort_keys=True) == json.dumps(AS_KUBECTL[text], sort_keys=True)


@pytest.mark.parametrize("text", ["{<<: 4}", "{<<: ~}", "{<<: [[{a: 1}]]}", "&z {<<: *z}", "&z {<<: [{<<: *z}]}"])
def test_a_merge_that_kubectl_refuses_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(f"value: {text}\n")
    with pytest.raises(InvalidSpec, match=r"is not valid YAML: .* line 1, column"):
        read_documents(path)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("value:\t4\t# a comment behind tabs\n", [4]),
        ("value: {\n\ta: [1,\t2]\n}\n", [{"a": [1, 2]}]),
        ('value: "a\tb"\t\n', ["a\tb"]),
        ('\n {\n\t"value": [1e1, 1.0, 1e-4, true, null, "yes"],\n\t"value": "a\\/b"\n}\n', ["a/b"]),
        ('{\n\t"value": [1e1, 1.0, 1e-4, true, null, "yes"]}\n', [[10, 1, 0.0001, True, None, "yes"]]),
        ("value: 1\n...\nvalue: [\n---\nvalue: 2\n... # the end\nit is\n", [1, 2]),
        ("--- # a comment\nvalue: 1\n---\n--- \nvalue: '---'\n", [1, "---"]),
        ("value: |\n  %YAML 1.2\n  --- {\n", ["%YAML 1.2\n--- {\n"]),
        ('{"value": 1}\n{"value": 2}', [1, 2]),
        ('# YAML\n{"value":\t1}', [1]),
        ('value: 1\n---\n{"value":\t2}', [1, 2]),
    ],
)
def test_tabs_and_json_are_taken_as_kubectl_takes_them(tmp_path: Path, text: str, values: list[Any]) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    assert json.dumps([document["value"] for document in read_documents(path)]) == json.dumps(values)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{value: 1}", "is not valid JSON, as what begins with a brace has to be: .* line 1 column 2"),
        ('{"value": 1}\n---\n{"value": 2}', "is not valid JSON"),
        ('{"value": 1} # a comment', "is not valid JSON"),
        ("value:\n\t- 4\n", "is not valid YAML"),
        ("# a tab\n\t\nvalue: 4\n", "is not valid YAML"),
        ("%YAML 1.2\n---\nvalue: 4\n", r"no line such as %YAML 1\.2: take it away.* line 1, column 1"),
        ("# c\n%YAML 1.1\n---\nvalue: 4\n", r"no line such as %YAML 1\.2: take it away.* line 2, column 1"),
        ("value: a\n%foo\n", "take it away.* line 2, column 1"),
        ("value: 1\n--- {value: 2}\n", "takes nothing but a comment behind ---: write .* line 2, column 1"),
        ("value: 1\n---\nvalue: [\n", "is not valid YAML: .* line 4, column 1"),
        ("...\nvalue: 1\n", "is not valid YAML"),
        ('value: "a\\/b"\n', "found unknown escape character"),
        ("value: {~: 1}\n", "a key is a text: write ~ or null in quotes.* line 1, column 9"),
        ("value: -.inf\n", r"-\.inf is no number"),
        ("value: .NaN\n", r"\.NaN is no number"),
        ('{"value": NaN}', "is not valid JSON, .*: NaN is no number"),
        ('{"value": -Infinity}', "is not valid JSON, .*: -Infinity is no number"),
        ('{"value": 1}\n{"value": 1e999}', "is not valid JSON, .*: 1e999 is no number .* line 2"),
        (f'{{"value": {"1" * 5000}}}', "is not valid JSON"),
    ],
)
def test_tabs_and_json_that_kubectl_refuses_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(InvalidSpec, match=told):
        read_documents(path)


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_number_is_one_for_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{SWEEP}  parameters: {RANGE.replace('1e-2', '1e-5')}\n")
    assert main([command, str(path)]) == 64
    assert "spec.parameters[0].range.max: is not above min. Fix: raise it, or lower min" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_whole_number_with_an_exponent_is_taken_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{SWEEP}  preset: Guide\n  maxTrials: 1e1\n  activeDeadlineSeconds: 1e3\n")
    assert main([command, str(path)]) == 64
    assert "whole number" not in capsys.readouterr().err


def test_an_estimate_reads_as_a_run(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    path = case(lora={"dropout": "here"}, retries="there")
    path.write_text(path.read_text().replace('"here"', "1e1").replace('"there"', "1e1"))
    assert main(["estimate", str(path)]) == 64
    said = capsys.readouterr().err
    assert "spec.lora.dropout: must be below 1, is 10" in said
    assert "retries" not in said
