"""A batch from file to file: what is asked, what is published, what is said of it."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
import zstandard

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action
from tunery_common.errors import TuneryError

from kit.server.batch import TONE_SHA, jsonl, request, table
from kit.server.gateway import BASE, SHA, write_keys
from tools.cluster.s3 import S3Server


async def test_a_file_of_several_adapters_is_answered_line_by_line(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    async with table(tmp_path, s3_server, bucket) as here:
        result = await here.run(here.put(jsonl(request(number) for number in range(35))))
        lines = here.lines()
        assert [line["custom_id"] for line in lines] == [f"row-{number}" for number in range(35)]
        assert [line["tunery"]["adapter"] for line in lines[:3]] == [None, "support-bot", "tone"]
        assert [line["tunery"]["manifestSha256"] for line in lines[:3]] == [None, SHA, TONE_SHA]
        first = lines[1]
        assert set(first) == {"id", "custom_id", "response", "error", "tunery"}
        assert (first["error"], first["response"]["status_code"]) == (None, 200)
        assert first["response"]["request_id"] == first["id"]
        assert first["response"]["body"]["model"] == f"support-bot@{SHA[:12]}"
        assert set(here.oracle.asked.values()) == {1}
        assert here.oracle.most <= 4
        assert here.listed("out-u-1") == ["manifest.json", "output.jsonl"]
        assert here.parts == []

        assert result.answers is not None
        assert result.output is not None
        assert (result.answers.lines, result.answers.answered, result.answers.errors) == (35, 35, 0)
        assert (result.answers.prompt_tokens, result.answers.completion_tokens) == (175, 70)
        manifest = here.manifest()
        assert {(by.name, by.manifest_sha256): by.lines for by in manifest.lineage.answered_by} == {
            (BASE, None): 12,
            ("support-bot", SHA): 12,
            ("tone", TONE_SHA): 11,
        }
        assert manifest.lineage.server == "team/support"
        assert manifest.lineage.versions["tunery-server"]
        assert result.output.size_bytes == manifest.size_bytes
        # Once more: everything is there, and nothing is asked.
        assert await here.run(here.put(b"")) == result
        assert set(here.oracle.asked.values()) == {1}


@pytest.mark.parametrize("packed", ["gz", "zst"])
async def test_packed_files_blank_lines_and_a_byte_order_mark_are_read(packed: str, tmp_path: Path) -> None:
    pack = gzip.compress if packed == "gz" else zstandard.ZstdCompressor().compress
    data = b"\xef\xbb\xbf" + jsonl([request(0)]) + b"\n  \n" + jsonl([request(1), request(2)]).rstrip()
    async with table(tmp_path) as here:
        await here.run(here.put(pack(data), f"in.jsonl.{packed}"))
        assert [line["custom_id"] for line in here.lines()] == ["row-0", "row-1", "row-2"]
        here.uid = "u-2"
        with pytest.raises(TuneryError, match="cannot be unpacked") as caught:
            await here.run(here.put(pack(data)[:-9], f"cut.jsonl.{packed}"))
        assert caught.value.reason is FailureReason.INPUT_INVALID


async def test_each_route_is_asked_and_the_default_model_stands_in(tmp_path: Path) -> None:
    lines = [
        {"custom_id": "é\ud800", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}},
        {"custom_id": "b", "method": "POST", "url": "/v1/responses", "body": {"input": "b", "stream": False}},
    ]
    async with table(tmp_path) as here:
        result = await here.run(here.put(jsonl(lines)), defaultModel="tone")
        assert here.site.engine.paths == ["/v1/completions", "/v1/responses"]
        assert [line["custom_id"] for line in here.lines()] == ["é\ud800", "b"]
        assert result.answers is not None
        assert (result.answers.prompt_tokens, result.answers.completion_tokens) == (10, 4)
        assert here.manifest().lineage.hyperparameters == {"defaultModel": "tone"}


async def test_an_api_key_opens_the_server_and_a_wrong_one_ends_the_batch_at_once(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", batch="secret-key")
    async with table(tmp_path, keys=keys) as here:
        uri = here.put(jsonl(request(number) for number in range(3)))
        with pytest.raises(TuneryError, match="apiKeySecretRef is not set") as caught:
            await here.run(uri)
        assert caught.value.reason is FailureReason.INVALID_SPEC
        wrong, right = (tmp_path / name for name in ("wrong", "right"))
        here.keys = write_keys(wrong, batch="another").model_copy(update={"field": "spec.apiKeySecretRef"})
        with pytest.raises(TuneryError, match="answers 401") as caught:
            await here.run(uri)
        assert caught.value.reason is FailureReason.SERVER_ACCESS_DENIED
        assert "another" not in caught.value.message
        here.keys = write_keys(right, other="x").model_copy(update={"field": "spec.apiKeySecretRef"})
        with pytest.raises(TuneryError, match="the Secret keys has no key batch, or there is no such Secret") as caught:
            await here.run(uri)
        assert caught.value.reason is FailureReason.SECRET_NOT_FOUND
        assert not here.oracle.asked
        here.keys = keys.model_copy(update={"field": "spec.apiKeySecretRef"})
        await here.run(uri)
        assert len(here.lines()) == 3


async def test_a_model_that_is_held_to_other_clients_is_named_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", batch="secret-key").model_copy(update={"field": "spec.apiKeySecretRef"})
    async with table(tmp_path, keys=keys) as here:
        here.keys = keys
        here.site.routes.allow({"batch": ["tone", BASE]})
        uri = here.put(jsonl([request(0), request(2), request(1), request(5, model="tune")]))
        with pytest.raises(TuneryError) as caught:
            await here.run(uri)
        assert caught.value.reason is FailureReason.SERVER_ACCESS_DENIED
        assert caught.value.message == (
            "spec.apiKeySecretRef: the server does not let this API key ask for the model 'support-bot' of line 3 and "
            "for 1 more"
        )
        assert "access.clients of the AdapterServer" in caught.value.remedies[0].text
        with pytest.raises(TuneryError, match=r"the model 'tune' of line 1; did you mean 'tone'\?"):
            await here.run(here.put(jsonl([request(5, model="tune")])))
        assert not here.oracle.asked
        # Followed to the letter, it goes.
        here.site.routes.allow({"batch": ["tone", BASE, "support-bot", "tune"]})
        await here.run(here.put(jsonl([request(0), request(2), request(1)])))
        assert len(here.lines()) == 3


async def test_a_model_that_is_taken_from_the_key_meanwhile_ends_the_batch_and_is_named(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", batch="secret-key").model_copy(update={"field": "spec.apiKeySecretRef"})
    async with table(tmp_path, keys=keys) as here:
        here.keys, here.oracle.seconds = keys, 0.05
        running = asyncio.create_task(here.run(here.put(jsonl(request(2) | {"custom_id": str(n)} for n in range(200)))))
        while not here.oracle.asked:
            await asyncio.sleep(0.02)
        here.site.routes.allow({"batch": [BASE]})
        with pytest.raises(TuneryError, match=r"does not let this API key ask for the model 'tone' of line \d+$"):
            await running


@pytest.mark.parametrize(("value", "words"), [(None, "has no key batch, or there is no such"), (" \n", "is empty")])
async def test_a_key_that_the_secret_lacks_is_told_with_where_to_look(
    value: str | None, words: str, tmp_path: Path
) -> None:
    """The pod sees nothing of the Secret but that key: it cannot tell whether there is a Secret without it."""
    given = {} if value is None else {"batch": value}
    keys = write_keys(tmp_path / "keys", **given).model_copy(update={"field": "spec.apiKeySecretRef"})
    async with table(tmp_path) as here:
        here.keys = keys
        with pytest.raises(TuneryError, match=words) as caught:
            await here.run(here.put(jsonl([request(0)])))
        assert caught.value.reason is FailureReason.SECRET_NOT_FOUND
        assert caught.value.message.startswith("spec.apiKeySecretRef: the ")
        if value is None:
            add, correct = caught.value.remedies
            assert "`kubectl describe secret keys -n team`" in add.text
            assert (correct.action, correct.fields) == (Action.RECREATE, ["apiKeySecretRef"])


async def test_a_key_that_is_renewed_meanwhile_is_read_anew(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", batch="first-key").model_copy(update={"field": "spec.apiKeySecretRef"})
    async with table(tmp_path, keys=keys) as here:
        here.keys, here.oracle.seconds = keys, 0.05
        running = asyncio.create_task(here.run(here.put(jsonl(request(number) for number in range(150)))))
        while len(here.oracle.asked) < 20:
            await asyncio.sleep(0.01)
        write_keys(tmp_path / "keys", batch="second-key")
        assert (await running).answers.answered == 150  # type: ignore[union-attr]


async def test_an_output_that_is_there_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        uri = here.put(jsonl([request(0)]))
        here.output = "shared"
        await here.run(uri)
        here.uid = "u-2"
        with pytest.raises(TuneryError, match="already holds the result") as caught:
            await here.run(uri)
        assert caught.value.reason is FailureReason.OUTPUT_EXISTS
        assert sum(here.oracle.asked.values()) == 1
