"""What a checkpoint remembers of the run that wrote it: what must be the same, and what a later job need not repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tunery_api.fields import ApiModel
from tunery_api.inputs import DatasetEvaluation, DatasetSpec, ModelSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import (
    AdaLoraSpec,
    LoraSpec,
    Method,
    PreferenceSpec,
    PrefixTuningSpec,
    PromptTuningSpec,
    QuantizationSpec,
)
from tunery_api.runspec import RunIdentity
from tunery_api.training import Optimizer, TrainingSpec
from tunery_common.errors import TuneryError
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.model.load import model_facts
from tunery_trainer.plan.training_plan import TrainingPlan, plan_training
from tunery_trainer.resuming import resume
from tunery_trainer.resuming.may_resume import check_base, check_origin, check_own, rows_of, settings_of
from tunery_trainer.resuming.memo import Base, Memo, Origin
from tunery_trainer.resuming.resume import Resumed, with_taken
from tunery_trainer.resuming.taken_settings import NOTHING, Taken, manifest_of, with_device_taken, with_open_taken
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.loop import Chosen
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.sizing import DataFacts
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, RunSettings
from unit.trainer.plan.test_planning import GIB, basis_of, dataset, planned, shapes

from kit.preferences import REPORT
from kit.training import CPU, spec_of

__all__ = ["shapes"]
LOOP: dict[str, Any] = {
    "maxSteps": 300,
    "learningRate": 0.00031,
    "scheduler": "Linear",
    "warmup": 7,
    "batchSize": 3,
    "gradientAccumulation": 2,
    "maxLength": 100,
    "optimizer": "AdamW8bit",
    "weightDecay": 0.01,
    "maxGradNorm": 1.5,
    "neftuneNoiseAlpha": 5,
    "seed": 0,
}
LORA: dict[str, Any] = {
    "rank": 4,
    "alpha": 12,
    "dropout": 0.03,
    "targetModules": ["q_proj", "v_proj"],
    "modulesToSave": ["embed_tokens"],
}
SPECS: dict[str, dict[str, Any]] = {
    "LoRA": {
        "method": "LoRA",
        "lora": LORA
        | {"useRslora": True, "init": "Gaussian", "rankPattern": {"q_proj": 2}, "alphaPattern": {"q_proj": 3}},
        "training": LOOP | {"groupByLength": True, "loss": "All"},
    },
    "QLoRA": {"method": "QLoRA", "quantization": {"type": "FP4", "doubleQuant": False}, "training": LOOP},
    "AdaLoRA": {
        "method": "AdaLoRA",
        "adalora": {"initialRank": 6, "targetRank": 4, "warmupSteps": 2, "finalSteps": 3, "updateEverySteps": 2},
        "training": LOOP,
    },
    "IA3": {"method": "IA3", "training": LOOP | {"maxSteps": None, "epochs": 2.5}},
    "PromptTuning": {"method": "PromptTuning", "promptTuning": {"virtualTokens": 7, "initText": "w5"}},
    "PrefixTuning": {"method": "PrefixTuning", "prefixTuning": {"virtualTokens": 7, "projection": True}},
    "DPO": {"task": "DPO", "method": "DoRA", "preference": {"beta": 0.2, "lossType": "IPO"}, "training": LOOP},
    "KTO": {"task": "KTO", "method": "LoRA", "preference": {"desirableWeight": 1.5, "undesirableWeight": 1.2}},
    "preset": {"method": "LoRA", "preset": "StyleTransfer", "training": {"scaleLearningRateWithRank": True}},
}
FREE = {
    *("model.servedName", "model.secretRef", "dataset.maxInvalidRows", "dataset.secretRef"),
    # What they pin is compared itself.
    *("dataset.sha256", "dataset.evaluation.sha256"),
    *("lora.dropout", "promptTuning.initText", "quantization.computeType"),
    *("training.epochs", "training.maxSteps", "training.learningRate", "training.scaleLearningRateWithRank"),
    *("training.scheduler", "training.warmup", "training.weightDecay", "training.maxGradNorm", "training.precision"),
    *("training.gradientCheckpointing", "training.onOutOfMemory", "training.neftuneNoiseAlpha"),
    "training.parallelism",
}
"""Fields of the blocks that may differ; all others must be among what a checkpoint remembers."""
BLOCKS: dict[str, type[ApiModel]] = {
    "model": ModelSpec,
    "dataset": DatasetSpec,
    "dataset.evaluation": DatasetEvaluation,
    "lora": LoraSpec,
    "adalora": AdaLoraSpec,
    "promptTuning": PromptTuningSpec,
    "prefixTuning": PrefixTuningSpec,
    "quantization": QuantizationSpec,
    "preference": PreferenceSpec,
    "training": TrainingSpec,
}
"""Blocks that are compared, field by field. Written out, not taken from the product: what it forgot is seen here."""
FREE_BLOCKS = {
    *("suspend", "retries", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "preset", "evaluation", "checkpoint"),
    *("continueFrom", "resumeFrom", "output", "tracking", "cache", "resources", "scheduling", "preflight", "diagnosis"),
    *("stop", "onStop"),
}


def settings(folder: Path, spec: LoRAJobSpec, taken: Taken = NOTHING) -> RunSettings:
    """Return what a spec is resolved to on 500 rows."""
    facts = model_facts(folder)
    chosen = Chosen(DataFacts(500, packed=False, step_rows=taken.rows))
    return taken.marked(resolve(spec, facts, CPU, method_choices(spec, 500, CPU)[0], chosen))


def told_of(plan: TrainingPlan) -> dict[str, Any]:
    """Return the settings that must be the same, beside those of the data."""
    return settings_of(plan.settings, plan.target_modules, plan.steps)


def origin(plan: TrainingPlan, **changes: Any) -> Origin:
    """Return what a checkpoint of a run remembers."""
    known = Origin(
        run=RunIdentity(kind="LoRAJob", namespace="team", name="x", uid="u"),
        base=Base(uri="s3://models/base", digest="d1", config_sha256="c1"),
        settings={**rows_of(spec_of({}), REPORT), **told_of(plan)},
        manifest=manifest_of(plan.settings),
        steps=300,
    )
    return known.model_copy(update=changes)


def simple(folder: Path, **blocks: Any) -> TrainingPlan:
    """Return a plan without its memory."""
    spec = spec_of(blocks)
    return TrainingPlan(basis_of(spec, folder, CPU), REPORT, settings(folder, spec), 300, ["q_proj"], 1, None)


def refused(check: Any, *arguments: Any, **named: Any) -> str:
    """Return why a check refuses."""
    with pytest.raises(TuneryError) as caught:
        check(*arguments, **named)
    assert caught.value.reason == "InvalidSpec"
    return caught.value.message


@pytest.mark.parametrize("name", SPECS)
def test_a_job_that_says_nothing_is_resolved_to_what_the_other_was(llama: Path, name: str) -> None:
    plan = simple(llama, **SPECS[name])
    spec, taken = with_open_taken(spec_of({"resumeFrom": {"uri": "s3://b/c"}}), origin(plan))
    again = settings(llama, spec, taken)
    assert told_of(replace(plan, settings=again)) == told_of(plan)
    passes = {"batch_size": 0, "gradient_accumulation": 0}
    assert replace(again.training, **passes) == replace(plan.settings.training, **passes)
    assert again.adapter == plan.settings.adapter
    sources = {value.name: value.source for value in again.values}
    assert sources["method"] == sources["task"] == sources["training.optimizer"] == "Checkpoint"
    assert sources["training.precision"] == "Manifest"
    assert "checkpoint" in again.method_reason


def test_what_an_adapter_made_elsewhere_is_like_may_be_what_no_manifest_can_say(llama: Path) -> None:
    """PEFT has no bounds; scaling is alpha / rank, exactly as it was."""
    plan = simple(llama, **SPECS["LoRA"])
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(100)]
    theirs = {"rank": 2048, "alpha": 8.5, "target_modules": tuple(names), "modules_to_save": tuple(names[:20])}
    patterns = {"rank_pattern": dict.fromkeys(names, 2048), "alpha_pattern": dict.fromkeys(names, 0.1)}
    plan = replace(plan, settings=replace(plan.settings, adapter=replace(plan.settings.adapter, **theirs, **patterns)))
    stored = Origin.model_validate_json(origin(plan).model_dump_json(by_alias=True))
    spec, taken = with_open_taken(spec_of({"resumeFrom": {"uri": "s3://b/c"}}), stored)
    assert settings(llama, spec, taken).adapter == plan.settings.adapter


def test_what_the_manifest_says_stays_and_counts_with_its_preset(llama: Path) -> None:
    theirs = origin(simple(llama, **SPECS["LoRA"]))
    said = {"lora": {"rank": 16}, "training": {"epochs": 2, "seed": 5, "batchSize": 2}}
    spec, taken = with_open_taken(spec_of(said), theirs)
    assert (spec.lora.rank, spec.lora.alpha, spec.training.epochs, spec.training.max_steps) == (16, 12, 2, None)
    assert not taken.fields & {"lora.rank", "training.epochs", "training.maxSteps", "training.seed"}
    training = settings(llama, spec, taken).training
    assert (training.seed, training.batch_size, training.gradient_accumulation) == (5, 2, 3)
    spec, taken = with_open_taken(spec_of({"preset": "StyleTransfer"}), theirs)
    assert (spec.lora.rank, spec.training.learning_rate, spec.training.seed) == (None, None, 0)
    for other in ({"method": "IA3"}, {"task": "DPO"}):
        assert with_open_taken(spec_of(other), theirs) == (spec_of(other), NOTHING), "refused by name"


@pytest.mark.slow
def test_a_larger_gpu_does_not_change_what_auto_and_an_open_optimizer_were(shapes: dict[str, Path]) -> None:
    small = planned(shapes["8B"], 12, training={"batchSize": 3, "gradientAccumulation": 3})
    assert small.settings.method is Method.QLORA
    resolved = replace(small.settings, training=replace(small.settings.training, optimizer=Optimizer.PAGED_ADAMW_8BIT))
    theirs = origin(replace(small, settings=resolved))
    spec, taken = with_open_taken(spec_of({"training": {"precision": "BFloat16"}}), theirs)
    device = DeviceFacts(DeviceKind.CUDA, 80 * GIB, bfloat16=True)
    plan = plan_training(basis_of(spec, shapes["8B"], device, taken), 20_000, dataset(4000))
    check_origin(theirs, 10, origin(plan))
    assert plan.settings.training.optimizer is Optimizer.PAGED_ADAMW_8BIT
    training = plan.settings.training
    assert (training.batch_size, training.gradient_accumulation) == (1, 9), "2 rows would do, and are no part of 9"


def test_a_retry_on_other_devices_keeps_the_rows_of_a_step(llama: Path) -> None:
    """As without a cluster, where a machine may have got another GPU."""
    first = simple(llama, training={"batchSize": 6, "gradientAccumulation": 2})
    spec, taken = with_device_taken(spec_of({}), origin(first))
    assert (taken.rows, spec.training.gradient_accumulation) == (12, None)
    plan = plan_training(basis_of(spec, llama, replace(CPU, devices=3), taken), 500, dataset(500, packed=False))
    training = plan.settings.training
    assert (training.batch_size * training.gradient_accumulation, training.gradient_accumulation % 3) == (12, 0)


def test_every_field_is_either_the_same_or_may_differ(llama: Path) -> None:
    """A new field of the API has to be put on one side: trained on with another value, it would be wrong in silence."""
    top = {str(info.alias) for info in LoRAJobSpec.model_fields.values()}
    assert top == {name for name in BLOCKS if "." not in name} | FREE_BLOCKS | {"task", "method"}
    told = {name.split(" (")[0] for blocks in SPECS.values() for name in origin(simple(llama, **blocks)).settings}
    assert {"task", "method"} <= told
    told |= {"model.uri", "model.revision", "training.batchSize", "training.gradientAccumulation", "dataset.evaluation"}
    fields = {f"{block}.{info.alias}" for block, model in BLOCKS.items() for info in model.model_fields.values()}
    assert fields - told == FREE
    assert not FREE & told


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("method", "spec.method: is QLoRA, and the checkpoint of spec.resumeFrom was trained with LoRA"),
        ("task", "spec.task: is DPO, and the checkpoint of spec.resumeFrom was trained with SFT"),
        ("beta", "spec.preference.beta: is 0.5, and the checkpoint of spec.resumeFrom was trained with 0.1"),
    ],
)
def test_each_difference_is_named(llama: Path, other: str, said: str) -> None:
    dpo = {"task": "DPO", "method": "LoRA"}
    before = dpo if other == "beta" else {"method": "LoRA"}
    now = {
        "method": {"method": "QLoRA"},
        "task": dpo,
        "beta": dpo | {"preference": {"beta": 0.5}},
    }[other]
    assert said in refused(check_origin, origin(simple(llama, **before)), 1, origin(simple(llama, **now)))


S3, HUB = (
    Base(uri="s3://models/base", digest="d1", config_sha256="c1"),
    Base(uri="hf://o/base", revision="r1", config_sha256="c1"),
)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (S3, S3.model_copy(update={"uri": "pvc://models/base"}), None),
        (S3, S3.model_copy(update={"digest": None}), None),
        (S3, S3.model_copy(update={"digest": "d2"}), "is s3://models/base at d2, and {} on s3://models/base at d1"),
        (S3, S3.model_copy(update={"digest": None, "config_sha256": "c2"}), "whose config.json is another than that"),
        (HUB, HUB.model_copy(update={"uri": "hf://mirror/base"}), None),
        (HUB, HUB.model_copy(update={"revision": "r2"}), "is hf://o/base at r2, and {} on hf://o/base at r1"),
        (HUB, S3, "is s3://models/base, and {} on hf://o/base at r1; a commit of a hub cannot be compared"),
        (S3, HUB, "is hf://o/base, and {} on s3://models/base; a commit of a hub cannot be compared"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_the_base_must_be_known_to_be_the_same(
    llama: Path, before: Base, now: Base, said: str | None, own: bool
) -> None:
    theirs = origin(simple(llama), base=before)
    if said is None:
        check_base(theirs, now, own=own)
        return
    was = "this job began" if own else "the checkpoint of spec.resumeFrom was trained"
    assert said.format(was) in refused(check_base, theirs, now, own=own)


def test_own_checkpoints_are_of_the_rows_that_are_there(llama: Path) -> None:
    plan = simple(llama)
    theirs = origin(plan)
    check_own(theirs, origin(plan, settings=theirs.settings | {"lora.rank": 5}))
    for name in ("dataset.uri (SHA-256 of its content)", "dataset.evaluation.uri (SHA-256 of its content)"):
        message = refused(check_own, theirs, origin(plan, settings=theirs.settings | {name: "f"}))
        assert message.startswith(f"spec.{name}: is f, and this job began with ")


@pytest.mark.parametrize("evaluation", [None, {}, {"fraction": 0.050}])
def test_the_default_fraction_may_be_spelt_out(evaluation: dict[str, str] | None) -> None:
    spec = spec_of({"dataset": {"uri": "s3://data/rows.jsonl", "evaluation": evaluation}})
    assert rows_of(spec, REPORT) == rows_of(spec_of({}), REPORT)


@pytest.mark.parametrize("evaluation", [{"uri": "s3://data/held-out.jsonl"}, {"split": "test"}])
def test_rows_that_are_held_out_by_name_have_no_fraction(evaluation: dict[str, str]) -> None:
    spec = spec_of({"dataset": {"uri": "s3://data/rows.jsonl", "evaluation": evaluation}})
    assert rows_of(spec, REPORT)["dataset.evaluation.fraction"] is None


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("PromptTuning", {"promptTuning.virtualTokens"}),
        ("PrefixTuning", {"prefixTuning.virtualTokens", "prefixTuning.projection"}),
    ],
)
def test_the_settings_of_a_prompt_method_are_its_own(llama: Path, name: str, fields: set[str]) -> None:
    assert {field for field in told_of(simple(llama, **SPECS[name])) if "Tuning." in field} == fields


@pytest.mark.parametrize(
    ("own", "ended_early", "steps", "finished"),
    [(False, False, 300, True), (False, False, 301, False), (True, True, 301, True), (False, True, 301, False)],
)
def test_a_checkpoint_at_the_last_step_is_finished(own: bool, ended_early: bool, steps: int, finished: bool) -> None:
    memo = cast("Memo", SimpleNamespace(finished=ended_early))
    assert Resumed(300, Path("checkpoint-300"), memo, own).is_finished(steps) is finished


def test_unset_fields_come_from_resume_from_until_the_job_has_a_checkpoint(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of({"resumeFrom": {"uri": "s3://b/c"}})
    work = cast("Workspace", SimpleNamespace(lora_job=spec, run=SimpleNamespace(resume_uri="s3://b/c")))
    theirs, own = (origin(simple(llama, method=name)) for name in ("DoRA", "IA3"))
    monkeypatch.setattr(resume, "peek", lambda _: SimpleNamespace(memo=SimpleNamespace(origin=theirs)))
    monkeypatch.setattr(resume, "_own_memo", lambda _: None)
    assert with_taken(work)[0].method is Method.DORA
    monkeypatch.setattr(resume, "_own_memo", lambda _: SimpleNamespace(origin=own))
    monkeypatch.setattr(resume, "peek", lambda _: pytest.fail("the other job's checkpoints were read"))
    assert with_taken(work)[0].method is Method.IA3
