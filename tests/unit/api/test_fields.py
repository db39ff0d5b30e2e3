"""Iterate over the fields of a spec with their paths, and change them."""

from __future__ import annotations

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.fields import iter_fields, map_fields

SPEC = AdapterMergeSpec.model_validate(
    {"adapters": [{"uri": "s3://a/one"}, {"loraJobRef": {"name": "two"}}], "output": {"uri": "s3://a/out"}}
)


def test_every_field_is_walked_with_its_path_in_the_manifest() -> None:
    found = {field.path: field.value for field in iter_fields(SPEC, "spec")}
    assert found["spec.adapters[0].uri"] == "s3://a/one"
    assert found["spec.adapters[1].loraJobRef.name"] == "two"
    assert found["spec.output.uri"] == "s3://a/out"
    assert found["spec.majoritySign"] == SPEC.majority_sign
    assert "spec.model.uri" not in found


def test_a_block_comes_before_what_is_inside() -> None:
    paths = [field.path for field in iter_fields(SPEC, "spec")]
    at = paths.index("spec.adapters[1].loraJobRef")
    assert paths[at + 1] == "spec.adapters[1].loraJobRef.name"


def test_fields_that_are_set_are_changed_wherever_they_stand_and_the_others_left_open() -> None:
    changed = map_fields(SPEC, lambda name, value: f"{value}/x" if name == "uri" else value)
    assert [item.uri for item in changed.adapters] == ["s3://a/one/x", None]
    assert changed.output.uri == "s3://a/out/x"
    assert changed.model_fields_set == SPEC.model_fields_set
    assert SPEC.output.uri == "s3://a/out"
