"""Damaged weights in a bucket: mended while they are read, they are served at the next look."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tunery_common.storage import s3_client
from tunery_server.adapters.slot import LOOK_SECONDS

from kit.server.loader import Table, adapter_files
from kit.server.stores import hanging_store

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("mended_behind", [1, 2], ids=["the first body", "the second body"])
async def test_weights_that_are_mended_while_they_are_read_are_read_again_at_the_next_look(
    mended_behind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "SHORT", s3_client.Patience(connect_seconds=2, read_seconds=2, attempts=1))
    with hanging_store() as store:
        table = Table(tmp_path, opened=store.open)
        item = store.publish("good", "bot", adapter_files(1))
        key, bodies, answer = f"good/bot/{WEIGHTS}", 0, store.answer
        good = store.objects[key]
        store.objects[key] = good[:-1] + b"x"

        def answered(request: BaseHTTPRequestHandler, with_body: bool) -> None:
            nonlocal bodies
            answer(request, with_body)
            if with_body and WEIGHTS in request.path:
                bodies += 1
                if bodies == mended_behind:
                    store.objects[key] = good

        store.answer = answered  # type: ignore[method-assign]
        table.want(item)
        await table.go()
        if mended_behind == 2:
            assert (table.told("bot").state, table.told("bot").reason, bodies) == ("Failed", "AdapterCorrupt", 2)
        await table.go(steps=1, seconds=LOOK_SECONDS)
        assert table.told("bot").state == "Served", table.told("bot").message


async def test_weights_that_stay_damaged_are_not_read_at_every_look(tmp_path: Path) -> None:
    with hanging_store() as store:
        table = Table(tmp_path, opened=store.open)
        item, bodies, answer = store.publish("good", "bot", adapter_files(1)), 0, store.answer
        store.objects[f"good/bot/{WEIGHTS}"] = store.objects[f"good/bot/{WEIGHTS}"][:-1] + b"x"

        def answered(request: BaseHTTPRequestHandler, with_body: bool) -> None:
            nonlocal bodies
            bodies += with_body and WEIGHTS in request.path
            answer(request, with_body)

        store.answer = answered  # type: ignore[method-assign]
        table.want(item)
        await table.go(steps=2, seconds=LOOK_SECONDS)
        assert (table.told("bot").reason, bodies) == ("AdapterCorrupt", 2)
