"""Weights that are no numbers are found before the engine sees them, whatever their type and place."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_common.errors import TuneryError
from tunery_server.adapters import finite
from tunery_server.adapters.finite import check_finite, none_in

from kit.server.loader import BASE, Table, adapter_files, lora_shapes, safetensors

LARGEST = {"F32": 3.4028234663852886e38, "F16": 65504.0, "BF16": 3.3895313892515355e38, "F64": 1.7976931348623157e308}
FORMATS = {"F64": (8, 0x7F, 0xF0), "F32": (4, 0x7F, 0x80), "BF16": (2, 0x7F, 0x80), "F16": (2, 0x7C, 0)}


def packed(dtype: str, value: float) -> bytes:
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    return struct.pack({"F32": "<f", "F16": "<e", "F64": "<d"}[dtype], value)


@pytest.mark.parametrize("dtype", LARGEST)
@given(values=st.lists(st.floats(-1e4, 1e4, width=16), max_size=20), place=st.integers(0, 20), data=st.data())
def test_one_number_that_is_none_is_found_and_the_largest_is_one(
    dtype: str, values: list[float], place: int, data: st.DataObject
) -> None:
    good = [packed(dtype, value) for value in [*values, LARGEST[dtype], -LARGEST[dtype], 0.0, -0.0]]
    assert not none_in(b"".join(good), *FORMATS[dtype])
    bad = packed(dtype, data.draw(st.sampled_from([math.nan, math.inf, -math.inf])))
    assert none_in(b"".join([*good[:place], bad, *good[place:]]), *FORMATS[dtype])


def write(path: Path, tensors: dict[str, tuple[str, bytes]]) -> Path:
    header, at = {}, 0
    for name, (dtype, data) in tensors.items():
        shape = [len(data) // len(packed(dtype, 0.0))]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))
    return path


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_tensor_is_named_wherever_in_the_file_it_lies(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "CHUNK", 64)
    numbers = random.Random(7)
    plain = b"".join(packed(dtype, numbers.gauss(0, 0.02)) for _ in range(100))
    width = len(packed(dtype, 0.0))
    check_finite(write(tmp_path / "good", {"first": (dtype, plain), "second": ("F32", bytes(400))}))
    for place in (0, 50, 99):
        bad = plain[: place * width] + packed(dtype, math.nan) + plain[(place + 1) * width :]
        path = write(tmp_path / "bad", {"first": ("F32", bytes(40)), "second": (dtype, bad), "third": (dtype, plain)})
        with pytest.raises(TuneryError, match="NaN, or an infinite number, in second") as caught:
            check_finite(path)
        assert caught.value.reason == "AdapterCorrupt"


async def test_an_adapter_of_nan_never_reaches_the_engine(tmp_path: Path) -> None:
    table = Table(tmp_path)
    files = adapter_files() | {"adapter_model.safetensors": safetensors(lora_shapes(), fill=0xFF)}
    table.want(table.item("nan", table.publish("nan", files)), table.item("bot", table.publish("bot")))
    await table.go()
    told = table.told("nan")
    assert (told.state, told.reason) == ("Failed", "AdapterCorrupt")
    assert "lora_A.weight" in str(told.message)
    assert [name.partition("@")[0] for name in table.engine.did("load")] == ["bot"]
    assert table.loader.ready()


async def test_an_engine_that_answers_nonsense_to_others_afterwards_must_start_anew_without_the_adapter(
    tmp_path: Path,
) -> None:
    table = Table(tmp_path)
    table.engine.spoils = lambda name: name.startswith("huge")
    table.want(table.item("huge", table.publish("huge")), table.item("bot", table.publish("bot", adapter_files(2))))
    await table.go()
    state = table.loader.state()
    assert state.reason == "EngineFailed"
    assert "answers the base model with NaN since huge@" in str(state.message)
    assert not table.loader.ready()
    assert not await table.engine.health(), "which the kubelet is told, who ends it"
    table.engine.start(2)
    await table.go()
    assert table.loader.ready()
    assert table.told("huge").reason == "ProbeFailed"
    assert "1 of 1 log-probabilities" in str(table.told("huge").message)
    table.new_gateway()
    await table.go()
    assert table.told("huge").reason == "EngineFailed", "another process of the gateway asks it no more"
    assert "with NaN after it was asked with this version" in str(table.told("huge").message)
    assert table.answers("bot").startswith("bot@")
    assert table.engine.did("probe").count(BASE) >= 2
