"""What a batch has published is said again, where the word of the pod that did it was lost."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunResult, Task
from tunery_common.termination import TERMINATION_PATH_ENV

from kit.server.batch import Table, jsonl, request, table
from tools.cluster.s3 import S3Server


async def report(here: Table, uri: str) -> tuple[int, RunResult]:
    """Run the program as its container does; return the exit code and the last words."""
    run, words = here.folder / "run.json", here.folder / "words"
    run.write_text(here.spec(uri).model_dump_json(by_alias=True, exclude_none=True))
    command = (sys.executable, "-m", "tunery_server", Task.REPORT.value, str(run))
    environment = os.environ | {TERMINATION_PATH_ENV: str(words)}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    return await process.wait(), RunResult.model_validate_json(words.read_bytes())


@pytest.mark.slow
async def test_it_says_what_the_batch_itself_said(tmp_path: Path, s3_server: S3Server, bucket: str) -> None:
    async with table(tmp_path, s3_server, bucket) as here:
        uri = here.put(jsonl(request(number) for number in range(30)))
        said = await here.run(uri)
        asked = here.oracle.asked.total()
        assert await report(here, uri) == (ExitCode.OK, said)
        assert said.output is not None
        assert here.oracle.asked.total() == asked, "nobody is asked anything"


@pytest.mark.slow
async def test_where_nothing_of_this_very_batch_is_there_it_says_so(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    async with table(tmp_path, s3_server, bucket) as here:
        uri = here.put(jsonl([request(0)]))
        here.output = "shared"
        await here.run(uri)
        here.uid = "another"
        code, words = await report(here, uri)
        assert words.failure is not None
        assert (code, words.failure.reason) == (ExitCode.USER_ERROR, FailureReason.ADAPTER_MISSING)
