"""`python -m tunery_trainer check`: the data report on a laptop, by the real command line."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode

from kit import kubectl_yaml
from kit.story import Case, Write, command, environment, make_rows, run_here, run_trainer, write_rows


def test_good_rows_alone(write: Write) -> None:
    done = run_trainer("check", write("data.jsonl", make_rows()))
    assert done.returncode == ExitCode.OK, done.stderr
    assert "| Valid rows   | 120 |" in done.stdout
    assert "Tokens" not in done.stdout


@pytest.mark.slow
def test_who_reads_the_first_lines_sees_no_trace(write: Write) -> None:
    rows: list[Any] = [{"prompt": f"{n}"} for n in range(5000)]
    checking = subprocess.Popen(
        command("check", write("data.jsonl", rows)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert checking.stdout is not None
    assert checking.stdout.readline().startswith(b"# Data report")
    checking.stdout.close()
    _, said = checking.communicate(timeout=60)
    assert (checking.returncode, said) == (128 + signal.SIGPIPE, b"")


@pytest.mark.slow
def test_it_needs_no_library_of_tensors(write: Write) -> None:
    path = write("data.jsonl", make_rows())
    code = f"import sys; from tunery_trainer.cli import main; main(['check', {str(path)!r}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "boto3"} & set(done.stdout.splitlines()[-1].split())


def test_all_bad_rows_are_told(write: Write, tmp_path: Path) -> None:
    rows: list[Any] = [*make_rows(), *({"prompt": f"{n}"} for n in range(1500)), "{"]
    done = run_here("check", write("data.jsonl", rows), "--output", tmp_path / "report")
    assert done.returncode == ExitCode.DATA_ERROR
    assert done.stderr.splitlines()[-2].startswith("DatasetInvalid: 1501 of 1621 rows are invalid")
    assert "data.jsonl lines 121 to 1120: completion: is missing; columns: prompt\n" in done.stdout
    assert "501 more are not shown here; data-report.json lists 1,501" in done.stdout
    document = json.loads((tmp_path / "report" / "data-report.json").read_text())
    assert document["format"] == "tunery.dev/data-report"
    assert [row["line"] for row in document["invalidRows"]] == list(range(121, 1622))
    assert document["invalid"]["leftOut"] == 0
    text = (tmp_path / "report" / "data-report.md").read_text()
    assert "\ndata.jsonl lines 121 to 1620: completion: is missing" in text
    assert "\ndata.jsonl line 1621: " in text


def test_with_a_model_tokens_are_counted(write: Write, tiny_model: Path) -> None:
    done = run_here("check", write("data.jsonl", make_rows()), "--model", tiny_model, "--max-length", "44")
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stderr.startswith("Check      Loading torch and PEFT")
    for said in ("Cut at maxLength 44", "≤ 44", "[[cat cat 19<|im_end|>]]", "5 examples"):
        assert said in done.stdout


def test_a_manifest_says_how_rows_are_read(case: Case) -> None:
    path = case(dataset={"uri": "file://data.jsonl", "columns": {"prompt": "q", "completion": "a"}})
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in make_rows()]
    write_rows(path.parent / "data.jsonl", rows)
    done = run_here("check", path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Sequences to train on" in done.stdout
    assert sorted(file.name for file in path.parent.iterdir()) == ["data.jsonl", "job.yaml", "model"], "nothing is left"


def test_a_manifest_may_be_json_and_rows_of_json_stay_data(case: Case, write: Write) -> None:
    path = case(dataset={"uri": "file://data.jsonl"})
    write_rows(path.parent / "data.jsonl", make_rows())
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps(kubectl_yaml.load(path.read_text())))
    told = [run_here("check", file) for file in (path, manifest)]
    assert [done.returncode for done in told] == [ExitCode.OK, ExitCode.OK], told[1].stderr
    assert told[0].stdout == told[1].stdout
    rows = write("data.json", [])
    rows.write_text(json.dumps(make_rows()))
    assert "Valid rows" in run_here("check", rows).stdout


@pytest.mark.parametrize("own", [True, False])
def test_each_valid_row_is_trained_on_or_told_as_held_out(case: Case, own: bool) -> None:
    evaluation = {"uri": "file://own.jsonl"} if own else {"fraction": 0.1}
    path = case(dataset={"uri": "file://data.jsonl", "evaluation": evaluation}, training={"packing": False})
    write_rows(path.parent / "own.jsonl", make_rows(8))
    write_rows(path.parent / "data.jsonl", make_rows(40))
    told = run_here("check", path, "--output", path.parent / "report").stdout
    tokens = json.loads((path.parent / "report" / "data-report.json").read_text())["tokens"]
    rows = dict(re.findall(r"^\| ([\w ]+?) +\| (\d+)", told, re.MULTILINE))
    assert rows["Valid rows"] == "40"
    assert rows.get("Rows held out for evaluation") == (None if own else "4")
    assert int(rows["Sequences to train on"]) + tokens.get("heldOutRows", 0) == 40


def test_a_manifest_needs_no_output(case: Case) -> None:
    path = case(output=None)
    assert run_here("check", path).returncode == ExitCode.OK


def test_preferences_without_a_model(write: Write) -> None:
    made = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(9)]
    done = run_here("check", write("data.jsonl", made), "--task", "DPO")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "DPO, Preference" in done.stdout


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": "?", "chosen": "yes", "rejected": "no"}, ("--task", "DPO")),
        ({"prompt": "?", "completion": "no", "label": False}, ("--task", "KTO")),
        (
            {"prompt": "?", "completion": "no", "label": False},
            ("--format", "PromptCompletion"),
        ),
    ],
)
def test_rows_of_preferences_are_told_with_the_option_that_reads_them(
    write: Write, row: dict[str, Any], options: tuple[str, str]
) -> None:
    path = write("data.jsonl", [{**row, "prompt": f"{n}?"} for n in range(9)])
    refused = run_here("check", path)
    assert refused.returncode == ExitCode.DATA_ERROR
    hint = refused.stderr.splitlines()[-1]
    assert all(word in hint for word in options)
    assert "--columns" in hint
    assert run_here("check", path, *options).returncode == ExitCode.OK


def test_a_settings_file_in_a_folder_of_data_is_told_to_go_or_the_data_to_be_named(write: Write) -> None:
    path = write("data.jsonl", make_rows())
    (path.parent / "adapter_config.json").write_text(json.dumps({"r": 8}, indent=2))
    refused = run_here("check", path.parent)
    assert refused.returncode == ExitCode.DATA_ERROR
    assert "the path to check" in refused.stderr.splitlines()[-1]
    assert run_here("check", path).returncode == ExitCode.OK


def test_of_a_pair_both_answers_are_shown(write: Write, tiny_model: Path) -> None:
    made = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(9)]
    done = run_here("check", write("data.jsonl", made), "--task", "DPO", "--model", tiny_model)
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout.index("chosen:") < done.stdout.index("[[yes") < done.stdout.index("rejected:")
    assert "Tokens of rejected texts" in done.stdout


def test_other_columns_and_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('question,answer\n"Hi, you",Hello\nWhat?,Nothing\n')
    assert run_here("check", path).returncode == ExitCode.DATA_ERROR
    done = run_here("check", path, "--columns", "prompt=question,completion=answer")
    assert done.returncode == ExitCode.OK, done.stderr


@pytest.mark.slow
def test_a_link_of_the_hubs_cache_is_read_by_its_name_in_check_estimate_and_run_alike(case: Case) -> None:
    path = case(dataset={"uri": "file://snapshots/x/train.jsonl"}, preflight="Only")
    for folder in ("snapshots/x", "blobs"):
        (path.parent / folder).mkdir(parents=True)
    link = path.parent / "snapshots" / "x" / "train.jsonl"
    write_rows(path.parent / "blobs" / "abc", make_rows())
    link.symlink_to("../../blobs/abc")
    for arguments in (("check", link), ("check", path), ("estimate", path), ("run", path)):
        done = run_here(*arguments)
        assert done.returncode == ExitCode.OK, done.stderr


def test_what_comes_out_of_a_pipe_is_refused_as_that() -> None:
    reading, writing = os.pipe()
    try:
        done = run_here("check", f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)
    *_, line, hint = done.stderr.splitlines()
    assert f"{reading}: is a pipe, a socket or a device, and no file" in line
    assert "a file such as data.jsonl" in hint


def test_other_columns_are_told_once_with_the_option_that_helps(write: Write) -> None:
    path = write("qa.jsonl", [{"question": f"{n}?", "answer": "yes"} for n in range(40)])
    done = run_here("check", path)
    assert done.returncode == ExitCode.DATA_ERROR
    *_, line, hint = done.stderr.splitlines()
    assert line.count("is in no known format; columns: question, answer") == 1
    assert "(the same in lines 2, 3, 4, 5 and 35 more)" in line
    assert "qa.jsonl lines 1 to 40: is in no known format" in done.stdout
    (option,) = re.findall(r"--columns [\w=,]+\w", hint)
    assert "manifest" not in hint
    followed = run_here("check", path, *option.split())
    assert followed.returncode == ExitCode.OK, followed.stderr


def test_hints_of_data_without_a_manifest_name_the_options(tmp_path: Path, write: Write) -> None:
    good, labels = make_rows(), [{"prompt": f"{n}", "completion": "x", "label": True} for n in range(30)]
    for arguments in (
        (write("good.jsonl", good), "--columns", "prompt=q"),
        (write("good.jsonl", good), "--task", "DPO"),
        (write("label.jsonl", labels),),
        (write("bad.jsonl", [*good, {}]),),
        (tmp_path, "--split", "dev"),
    ):
        done = run_here("check", *arguments)
        assert done.returncode != ExitCode.OK, arguments
        hint = done.stderr.splitlines()[-1]
        assert not re.search(r"spec\.|manifest|LoRAJob", hint), hint


def test_copies_are_told_as_a_share_of_the_rows_of_both_sides(case: Case) -> None:
    path = case(dataset={"uri": "file://data.jsonl", "evaluation": {"uri": "file://held.jsonl"}})
    (path.parent / "held.jsonl").write_text('{"prompt": "Held?", "completion": "Out."}\n' * 20)
    done = run_here("check", path)
    assert done.returncode == ExitCode.OK, done.stderr
    again = 120 - len({json.dumps(row) for row in make_rows()}) + 19
    assert re.search(rf"\| Duplicates +\| {again} \({100 * again / 140:.3g} %\) \|", done.stdout), done.stdout


def test_names_with_signs_of_a_glob(tmp_path: Path) -> None:
    folder = tmp_path / "a [b] 100%*"
    folder.mkdir()
    write_rows(folder / "da[t]a ü.jsonl", make_rows())
    for path in (folder, folder / "da[t]a ü.jsonl"):
        assert run_here("check", path).returncode == ExitCode.OK


def test_what_a_terminal_would_obey_is_shown_and_not_sent(write: Write, tiny_model: Path) -> None:
    made: list[Any] = [{"prompt": f"\x1b[2J{n}", "completion": "a\x1b]0;x\x07\u202e"} for n in range(40)]
    done = run_here("check", write("data.jsonl", [*made, {"pro\x1bmpt": "x"}]), "--model", tiny_model)
    assert "\x1b" not in done.stdout
    assert "\\x1b[2J0" in done.stdout
    assert "\\u202e" in done.stdout
    assert "\x1b" not in done.stderr


STRANGERS: dict[str, tuple[list[str], ExitCode, str]] = {
    "no such file": (["nowhere.jsonl"], ExitCode.USER_ERROR, "there is no file or folder nowhere.jsonl"),
    "empty": (["empty.jsonl"], ExitCode.DATA_ERROR, "has no row"),
    "empty folder": (["folder"], ExitCode.USER_ERROR, "no data file at 'folder'"),
    "picture": (["picture.png"], ExitCode.USER_ERROR, "picture.png: has not the name of a data file (read are .jsonl"),
    "binary": (["binary.jsonl"], ExitCode.DATA_ERROR, "is not valid UTF-8"),
    "half a character": (["half.jsonl"], ExitCode.DATA_ERROR, "k\\ud800"),
    "of Windows": (["utf-16.jsonl"], ExitCode.DATA_ERROR, "utf-16.jsonl: is UTF-16 and not UTF-8"),
    "linked folder": (["linked"], ExitCode.USER_ERROR, "sub: is a linked folder that leads out of the data set's"),
    "loop": (["loop"], ExitCode.USER_ERROR, "sub: is a link to a folder that it lies in itself"),
    "itself": (["itself.jsonl"], ExitCode.USER_ERROR, "is a link to itself.jsonl, which leads back to itself"),
    "pipe": (["pipe.jsonl"], ExitCode.USER_ERROR, "pipe.jsonl: is a pipe, a socket or a device"),
    "cut off": (["cut.jsonl.gz"], ExitCode.DATA_ERROR, "the compressed data is damaged or ends too early"),
    "of another task": (["good.jsonl", "--task", "DPO"], ExitCode.DATA_ERROR, "task DPO learns from Preference"),
    "unknown task": (["good.jsonl", "--task", "RL"], ExitCode.USER_ERROR, "spec.task: must be 'SFT'"),
    "unknown format": (["good.jsonl", "--format", "X"], ExitCode.USER_ERROR, "spec.dataset.format: must be 'Auto'"),
    "columns": (["good.jsonl", "--columns", "prompt"], ExitCode.USER_ERROR, "must be FIELD=COLUMN"),
    "unknown column": (["good.jsonl", "--columns", "prompt=q"], ExitCode.DATA_ERROR, "has no column 'q'"),
    "unknown field": (["good.jsonl", "--columns", "qu=q"], ExitCode.USER_ERROR, "there is no field 'qu'"),
    "no number": (["good.jsonl", "--max-length", "long"], ExitCode.USER_ERROR, "invalid int value: 'long'"),
    "too short": (["good.jsonl", "--max-length", "1"], ExitCode.USER_ERROR, "must be at least 8"),
    "no model": (["good.jsonl", "--model", "none"], ExitCode.USER_ERROR, "--model: there is no folder none"),
    "no tokenizer": (["good.jsonl", "--model", "folder"], ExitCode.USER_ERROR, "has no config.json"),
    "not yaml": (["broken.yaml"], ExitCode.USER_ERROR, "is not valid YAML"),
    "a merge": (["merge.yaml"], ExitCode.USER_ERROR, "holds no LoRAJob"),
    "nothing": ([], ExitCode.USER_ERROR, "the following arguments are required"),
}


@pytest.mark.parametrize(("arguments", "code", "said"), STRANGERS.values(), ids=STRANGERS.keys())
def test_what_strangers_do_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: ExitCode, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "good.jsonl", make_rows())
    (tmp_path / "empty.jsonl").touch()
    for name in ("folder", "linked", "loop"):
        (tmp_path / name).mkdir()
    for link, target in {"linked/sub": "../folder", "loop/sub": ".", "itself.jsonl": "itself.jsonl"}.items():
        (tmp_path / link).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.jsonl")
    write_rows(tmp_path / "half.jsonl", [{"k\ud800": 1}])
    (tmp_path / "utf-16.jsonl").write_text('{"text": "ü"}', "utf-16")
    for name in ("picture.png", "binary.jsonl"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\xff\xfe\n" * 30)
    whole = gzip.compress(json.dumps({"text": os.urandom(4000).hex()}).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "merge.yaml").write_text("kind: AdapterMerge\nmetadata: {name: m}\nspec: {}\n")
    done = run_here("check", *arguments)
    assert done.returncode == code, done.stderr
    *_, line, hint = done.stderr.splitlines()
    assert said in line
    assert hint
    assert "Traceback" not in done.stderr
