"""Methods of the guide, end to end: each trains, publishes, and loads in plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Launch

from kit.published import download

pytestmark = pytest.mark.slow

METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "qlora": ({"method": "QLoRA"}, "LORA"),
    "adalora": ({"method": "AdaLoRA", "adalora": {"initialRank": 6, "targetRank": 4}}, "LORA"),  # as it is served
    "prompt-tuning": ({"method": "PromptTuning", "promptTuning": {"virtualTokens": 8}}, "PROMPT_TUNING"),
    "ia3": ({"method": "IA3"}, "IA3"),
}


def test_methods_train_and_publish(launch: Launch, s3: Any, tmp_path: Path) -> None:
    jobs = {name: launch(name, **blocks) for name, (blocks, _) in METHODS.items()}
    for name, (blocks, peft_type) in METHODS.items():
        status = jobs[name].wait_phase("Succeeded", timeout=600)
        assert status["resolved"]["method"] == blocks["method"]
        assert float(status["metrics"]["evalLoss"]) < float(status["metrics"]["baseEvalLoss"])
        download(s3, status["adapter"]["uri"], tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["peft_type"], config["base_model_name_or_path"]) == (peft_type, "tiny")


@pytest.mark.parametrize("method", ["PrefixTuning", "PromptTuning"])
def test_packing_is_refused_where_it_would_be_wrong(launch: Launch, method: str) -> None:
    from kit.kubectl import KubectlError

    with pytest.raises(KubectlError, match="packing"):
        launch("packed", method=method, training={"packing": True, "maxSteps": 5})
