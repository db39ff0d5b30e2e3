"""Which files make up a model; an adapter is none of them."""

from __future__ import annotations

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.file_selection import is_model_file, model_files

MODEL = ["config.json", "model.safetensors", "tokenizer.json"]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("names", "says", "fixes"),
    [
        (MODEL + ADAPTER, "beside the model: adapter_config.json", [[], ["model.uri"]]),
        (ADAPTER, "(adapter_config.json), and no model", [["model.uri"], ["continueFrom"]]),
        (["config.json", *ADAPTER], "(adapter_config.json), and no model", [["model.uri"], ["continueFrom"]]),
    ],
    ids=["beside-a-model", "alone", "with-a-config"],
)
def test_a_folder_with_an_adapter_is_refused(names: list[str], says: str, fixes: list[list[str]]) -> None:
    with pytest.raises(TuneryError) as caught:
        model_files(names, "pvc://claim/base", weights=False)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert f"spec.model.uri: pvc://claim/base holds an adapter {says}" in caught.value.message
    assert [remedy.fields for remedy in caught.value.remedies] == fixes


def test_what_is_left_of_an_adapter_is_no_part_of_the_model() -> None:
    """Removing the configuration is enough; a merge copies neither of the two."""
    assert model_files([*MODEL, "adapter_model.safetensors"], "pvc://claim/base", weights=True) == MODEL
    assert not any(map(is_model_file, ADAPTER))


def test_an_adapter_in_a_folder_below_is_left_alone() -> None:
    assert model_files([*MODEL, "vision/adapter_config.json"], "pvc://claim/base", weights=True) == MODEL
