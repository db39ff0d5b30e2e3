"""The model card has front matter that parses, and says how it was made and how to load it."""

from __future__ import annotations

import html
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from tunery_api.findings import CheckStatus, FindingStatus
from tunery_api.manifest import Lineage, MergeInputRecord, SourceRecord
from tunery_api.measured import DatasetStatus
from tunery_api.status import ResolvedStatus, VerificationStatus
from tunery_api.validation import parse_adapterserver
from tunery_trainer.diagnosis.answers import Answer
from tunery_trainer.reporting.markdown import literal
from tunery_trainer.reporting.model_card import Shown, model_card

from kit.results import lineage, run


def _front(card: str) -> dict[str, object]:
    return dict(vars(ModelCard(card).data))


def test_card_of_a_trained_adapter() -> None:
    made = lineage()
    card = model_card(run(), made, "s3://adapters/bot", shown=Shown({"Loss": "loss.png"}))
    found = _front(card)
    assert (found["base_model"], found["library_name"]) == ("owner/model", "peft")
    assert found["tags"] == ["tunery", "peft", "lora"]
    assert "| Evaluation loss | 1.25 |" in card
    assert "![Loss](loss.png)" in card
    assert f"| Data | `s3://datasets/x.jsonl` at `{'b' * 64}` |" in card
    assert "| `training.learningRate` | 2e-4 |" in card
    assert "| Libraries | peft 0.21.2 |" in card
    assert 'PeftModel.from_pretrained(base, "./bot")' in card
    assert "vllm serve owner/model --enable-lora --max-lora-rank 8 --lora-modules support-bot=./bot" in card
    assert "## Inputs" not in card


def test_a_change_has_a_standard_error_where_one_is_known() -> None:
    for metrics, row in (
        ({"improvement": 1.0}, "| Change of the evaluation loss | −100.0 % |"),
        (
            {"improvement": 0.3, "improvementError": 0.05},
            "| Change of the evaluation loss (± standard error) | −30.0 % (± 5.0 %) |",
        ),
    ):
        assert row in model_card(run(), lineage().model_copy(update={"metrics": metrics}), "s3://a/b")


def test_what_was_before_training_is_called_by_its_name() -> None:
    answer = Answer(prompt="p", expected="e", before="b", after="a")
    made = lineage().model_copy(update={"metrics": {"baseEvalLoss": 2.0, "baseRougeL": 0.5}})
    card = model_card(run(), made, "s3://a/b", shown=Shown(answers=(answer,)))
    assert "| Evaluation loss of the base model | 2 |" in card
    assert "| Held-out row | Its answer | Base model | This adapter |" in card
    record = MergeInputRecord(uri="s3://a/first")
    made = made.model_copy(update={"continued_from": record})
    card = model_card(run(), made, "s3://a/b", shown=Shown(answers=(answer,)))
    assert "| ROUGE-L of the answers of the adapter it continues | 0.5 |" in card
    assert "| Held-out row | Its answer | Adapter it continues | This adapter |" in card


def test_every_row_of_the_results_says_for_itself_what_it_counts() -> None:
    """The base's stands rows below the adapter's, so it is no end of that sentence."""
    metrics = {"exactMatch": 0.5, "rougeL": 0.6, "baseExactMatch": 0.0, "baseRougeL": 0.1}
    card = model_card(run(), lineage().model_copy(update={"metrics": metrics}), "s3://a/b")
    assert "| Answers that are word for word the row's | 0.5 |" in card
    assert "| Answers of the base model that are word for word the row's | 0 |" in card


def test_card_says_what_the_run_found_and_the_checklist() -> None:
    found = FindingStatus(type="Overfitting", severity="Warning", step=108, field="training.epochs", suggest="2")
    spoken = FindingStatus(type="StillLearning", severity="Info", step=120, message="It ended too early.")
    check = CheckStatus(name="Padding", result="Passed", message="7 % of the tokens | were padding")
    card = model_card(run(), Lineage(served_name="m", findings=[found, spoken], checks=[check]), "s3://a/b")
    assert "## What to know" in card
    assert "| Overfitting | Warning | 108 | training.epochs: 2 |" in card
    assert "| StillLearning | Info | 120 | It ended too early. |" in card
    assert "| Padding | Passed | 7 % of the tokens \\| were padding |" in card
    assert "## What to know" not in model_card(run(), Lineage(served_name="m", findings=[]), "s3://a/b")


def test_card_of_preferences_says_what_was_preferred() -> None:
    metrics = {"evalLoss": 0.25, "baseEvalLoss": 0.6931, "evalRewardAccuracy": 0.9375, "evalRewardMargin": 1.5}
    made = Lineage(served_name="m", method="LoRA", hyperparameters={"task": "DPO"}, metrics=metrics)
    card = model_card(run(), made, "s3://a/b")
    assert _front(card)["tags"] == ["tunery", "peft", "lora", "dpo"]
    assert "| Reward accuracy on held-out rows | 0.9375 |" in card
    assert "| Reward margin on held-out rows | 1.5 |" in card


def test_card_of_a_merge_names_its_inputs() -> None:
    merged = Lineage(
        served_name='odd "name": x',
        method="TIES",
        inputs=[MergeInputRecord(uri="s3://a/1", weight="0.7", rank=8, manifest_sha256="c" * 64)],
        verification=VerificationStatus(max_error="1e-7", method="logits"),
    )
    card = model_card(run(), merged, "s3://a/merged")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == 'odd "name": x'
    assert f"| `s3://a/1` | 0.7 | 8 | `{'c' * 64}` |" in card
    assert "| Largest error (logits) | 1e-7 |" in card


def test_card_says_what_of_the_data_was_trained() -> None:
    found = DatasetStatus(rows=5, assistant_turns=9, trained_turns=8, split_rows=2, warnings=["1 of 9 | is not"])
    card = model_card(run(), Lineage(served_name="m", method="LoRA", found=found), "s3://a/b")
    assert "| Answers that count in the loss | 8 of 9 |" in card
    assert "| Rows split | 2, since the chat template rewrites earlier turns |" in card
    assert "| Note | 1 of 9 \\| is not |" in card
    assert "Answers that count" not in model_card(
        run(), Lineage(served_name="m", found=DatasetStatus(rows=5)), "s3://a/b"
    )


@pytest.mark.parametrize(("method", "way"), [("IA3", "into: Model"), ("AdaLoRA", "method: Linear")])
def test_card_does_not_promise_what_vllm_cannot_serve(method: str, way: str) -> None:
    card = model_card(run(), Lineage(served_name="m", method=method), "s3://a/b")
    assert "vllm serve" not in card
    assert f"its method is {method}" in card
    assert way in card


def test_the_entry_of_the_card_is_one_that_a_server_takes() -> None:
    card = model_card(run(), lineage(), "s3://adapters/bot")
    (entry,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)]
    spec = {"model": {"uri": "hf://owner/model"}, "adapters": entry}
    (adapter,) = parse_adapterserver({"spec": spec}).adapters or ()
    assert (adapter.name, adapter.uri) == ("support-bot", "s3://adapters/bot")


def test_a_folder_of_this_machine_is_uploaded_before_a_server_takes_it() -> None:
    card = model_card(run(), lineage(), "file:///out/bot")
    assert "serves it from S3: upload the folder first." in card
    assert "uri:" not in card


def test_card_says_where_a_base_lies_that_no_hub_has() -> None:
    base = SourceRecord(uri="s3://models/SmolLM2-135M-Instruct", digest="b" * 64)
    made = lineage().model_copy(update={"model": base, "served_name": "SmolLM2-135M-Instruct"})
    card = model_card(run(), made, "s3://adapters/bot")
    assert "Copy `s3://adapters/bot` to `./bot`, and its base model, which lies at `s3://models/Smol" in card
    assert 'base = AutoModelForCausalLM.from_pretrained("./base")' in card
    assert "vllm serve ./base --served-model-name SmolLM2-135M-Instruct --enable-lora" in card
    assert 'from_pretrained("./base-model")' in model_card(run(), made, "s3://adapters/base")


def test_card_of_a_rank_that_vllm_has_not_names_the_next() -> None:
    assert "--max-lora-rank 32" in model_card(run(), Lineage(served_name="m", method="LoRA", rank=24), "s3://a/b")


def test_card_of_a_merged_model_loads_without_peft() -> None:
    merged = Lineage(served_name="m", method="Linear", inputs=[MergeInputRecord(uri="s3://a/1")])
    card = model_card(run(), merged, "s3://a/b", full_model=True)
    assert _front(card)["library_name"] == "transformers"
    assert "PeftModel" not in card
    assert 'AutoModelForCausalLM.from_pretrained("./b")' in card


def test_card_of_a_rejected_adapter_does_not_say_how_to_serve_it() -> None:
    made = lineage().model_copy(update={"rejected": "it is worse"})
    card = model_card(run(), made, "s3://adapters/bot-rejected")
    assert 'PeftModel.from_pretrained(base, "./bot-rejected")' in card
    assert "vllm" not in card


def test_card_says_what_became_of_a_rejected_input() -> None:
    record = MergeInputRecord(uri="s3://a/1", weight="1", rejected="it is worse")
    merged = model_card(run(), Lineage(served_name="m", method="TIES", inputs=[record]), "s3://a/merged")
    assert "| `s3://a/1` (rejected: it is worse) | 1 |" in merged
    continued = model_card(run(), Lineage(served_name="m", method="LoRA", continued_from=record), "s3://a/b")
    assert "| Continued from | `s3://a/1` (rejected: it is worse) |" in continued


def test_card_says_how_long_it_was_trained_and_which_step_it_is_of() -> None:
    made = Lineage(served_name="m", steps=4, step=1, epochs=0.25, resolved=ResolvedStatus(steps=40))
    said = "4 of 40, 0.25 epochs, published as it was after step 1, where the evaluation loss was lowest"
    assert f"| Steps | {said} |" in model_card(run(), made, "s3://a/b")
    whole = made.model_copy(update={"steps": 40, "step": 40})
    assert "| Steps | 40 of 40, 0.25 epochs |" in model_card(run(), whole, "s3://a/b")


def test_card_says_how_many_devices_have_trained_it() -> None:
    found = ResolvedStatus(device="NVIDIA H100", devices=8, parallelism="FSDP")
    made = Lineage(served_name="m", resolved=found)
    assert "| Device | 8 of NVIDIA H100, FSDP |" in model_card(run(), made, "s3://a/b")
    alone = made.model_copy(update={"resolved": ResolvedStatus(device="NVIDIA H100", devices=1)})
    assert "| Device | NVIDIA H100 |" in model_card(run(), alone, "s3://a/b")


def test_card_promises_no_vllm_where_experts_are_adapted() -> None:
    for told, served in (("29 of 30 billion parameters: adapted, never quantised", False), ("…: not adapted, …", True)):
        card = model_card(run(), Lineage(served_name="m", method="LoRA", hyperparameters={"experts": told}), "s3://a/b")
        assert ("vllm serve" in card) is served
        assert ("target_parameters" in card) is not served


def test_card_loads_the_base_with_the_class_that_it_was_trained_with() -> None:
    made = Lineage(served_name="m", method="LoRA", loader="AutoModelForImageTextToText")
    card, merged = model_card(run(), made, "s3://a/b"), model_card(run(), made, "s3://a/b", full_model=True)
    assert 'base = AutoModelForImageTextToText.from_pretrained("m")' in card
    assert 'model = AutoModelForImageTextToText.from_pretrained("./b")' in merged
    assert "AutoModelForCausalLM" not in card + merged
    assert "AutoModelForCausalLM" in model_card(run(), Lineage(served_name="m"), "s3://a/b")


def test_a_text_of_anybodys_is_shown_as_it_is() -> None:
    shown = literal("a <img src=x onerror=alert(1)> [l](javascript:1) `c` *b* _i_")
    assert not set("<>[]`*_") & set(shown)
    assert html.unescape(shown) == "a <img src=x onerror=alert(1)> [l](javascript:1) `c` *b* _i_"
