"""What cannot be merged is refused from the configs alone, with every adapter and field named, all at once."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.adaptermerge import MergeMethod, MergeTarget
from tunery_common.errors import TuneryError
from tunery_trainer.merging.compatibility import Facts, check, find_problems

ADAPTER, MODEL = MergeTarget.ADAPTER, MergeTarget.MODEL


def fact(label: str = "one", weight: float = 1.0, **config: Any) -> Facts:
    return Facts(label, {"peft_type": "LORA", "base_model_name_or_path": "org/base", **config}, weight)


def problems(
    *facts: Facts, method: MergeMethod = MergeMethod.LINEAR, rank: int | None = None, into: MergeTarget = ADAPTER
) -> list[str]:
    return [problem.text for problem in find_problems(facts, method, rank, into)]


@pytest.mark.parametrize(
    "facts",
    [
        [fact()],
        [fact(), fact("two", use_rslora=True, r=64)],
        [fact(), fact("two", peft_type="ADALORA")],
        [fact(peft_type="IA3"), fact("two", peft_type="IA3")],
        [fact(base_model_name_or_path="org/base/"), fact("two")],
        [fact(modules_to_save=["a", "b"]), fact("two", modules_to_save=["b", "a"])],
        [fact(modules_to_save=[]), fact("two", modules_to_save=None)],
        [fact(init_lora_weights=True), fact("two", init_lora_weights="gaussian")],
        [fact(str(index)) for index in range(32)],
    ],
)
def test_what_can_be_merged_is_not_refused(facts: list[Facts]) -> None:
    assert problems(*facts) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([], ["spec.adapters: 0 adapters; a merge takes 1 to 32"]),
        ([fact(str(i)) for i in range(33)], ["spec.adapters: 33 adapters; a merge takes 1 to 32"]),
        (
            [fact("a"), fact("b", base_model_name_or_path="org/other"), fact("c")],
            ["base_model_name_or_path differs: 'org/base' in a and c, 'org/other' in b"],
        ),
        (
            [fact("a", peft_type="PROMPT_TUNING")],
            ["a: a PROMPT_TUNING adapter cannot be merged (peft_type)"],
        ),
        ([fact("a", peft_type="PREFIX_TUNING")], ["a: a PREFIX_TUNING adapter cannot be merged (peft_type)"]),
        (
            [fact("a", use_dora=True), fact("b")],
            [
                "a: a DoRA adapter (use_dora) cannot be merged with others or into an adapter; "
                "merge it alone, with weight 1 and spec.into: Model"
            ],
        ),
        (
            [fact("a", peft_type="IA3"), fact("b")],
            ["a: IA3 adapters can only be merged with IA3 adapters (peft_type)"],
        ),
        ([fact("a", target_parameters=["experts"])], ["a: target_parameters is set, which cannot be merged"]),
        (
            [fact("a", init_lora_weights="pissa_niter_16")],
            [
                "a: init_lora_weights is 'pissa_niter_16': the adapter is relative to a changed base; "
                "convert it to a plain LoRA first"
            ],
        ),
        (
            [fact("a", modules_to_save=["lm_head"]), fact("b")],
            ["modules_to_save differs: ['lm_head'] in a, None in b"],
        ),
        (
            [fact("a", trainable_token_indices=[1, 2]), fact("b", trainable_token_indices=[1, 3])],
            ["trainable_token_indices differs: ['1', '2'] in a, ['1', '3'] in b"],
        ),
        (
            [fact("a", weight=0.5, modules_to_save=["x"]), fact("b", weight=-0.5, modules_to_save=["x"])],
            ["spec.adapters: the weights sum to 0, so modulesToSave have no weighted mean"],
        ),
    ],
    ids=lambda value: value[0][:30] if value and isinstance(value[0], str) else "",
)
def test_each_problem_names_adapters_and_fields(facts: list[Facts], expected: list[str]) -> None:
    assert problems(*facts) == expected


def test_dora_alone_goes_into_the_model_only() -> None:
    dora = fact("a", use_dora=True)
    assert problems(dora, into=MODEL) == []
    assert len(problems(dora, into=ADAPTER)) == 1
    assert len(problems(fact("a", weight=0.5, use_dora=True), into=MODEL)) == 1
    assert len(problems(dora, fact("b"), into=MODEL)) == 1


def test_ia3_knows_linear_only_and_no_rank() -> None:
    facts = [fact("a", peft_type="IA3"), fact("b", peft_type="IA3")]
    assert problems(*facts, method=MergeMethod.TIES, rank=4) == [
        "spec.method: IA3 adapters (a, b) can only be merged with Linear",
        "spec.rank: IA3 adapters (a, b) have no rank",
    ]


def test_revisions_differ_only_where_all_are_known() -> None:
    one, two = (Facts(label, fact().config, revision=revision) for label, revision in (("a", "1"), ("b", "2")))
    assert problems(one, two) == ["the base model's revision differs: '1' in a, '2' in b"]
    assert problems(one, fact("b")) == []


def test_quantisation_must_agree_only_for_a_model() -> None:
    one, two = Facts("a", fact().config, quantization="NF4"), fact("b")
    assert problems(one, two) == []
    assert problems(one, two, into=MODEL) == ["the quantisation trained with (lineage) differs: 'NF4' in a, None in b"]


def test_everything_is_told_at_once() -> None:
    facts = [fact("a", use_dora=True, task_type="SEQ_CLS"), fact("b", base_model_name_or_path="org/other")]
    with pytest.raises(TuneryError) as caught:
        check(facts, MergeMethod.LINEAR, None, ADAPTER)
    assert caught.value.reason == "InvalidSpec"
    for part in ("a: a DoRA adapter", "base_model_name_or_path differs", "task_type differs"):
        assert part in caught.value.message
    assert [each.fields for each in caught.value.remedies] == [["adapters"], []], "each once, and none of the manifest"
    assert "the same model.servedName" in caught.value.remedies[1].text


def test_each_problem_has_its_remedy() -> None:
    facts = [fact("a", peft_type="IA3"), fact("b", peft_type="IA3")]
    with pytest.raises(TuneryError) as caught:
        check(facts, MergeMethod.TIES, None, ADAPTER)
    assert [each.text for each in caught.value.remedies] == ["Correct the named fields"]
    with pytest.raises(TuneryError) as caught:
        check([*facts, fact("c", peft_type="IA3", bias="all")], MergeMethod.TIES, None, ADAPTER)
    assert [each.fields for each in caught.value.remedies] == [[], ["adapters"]]
