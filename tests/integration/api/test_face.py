"""What `import tunery_api` offers: all of it is there, and costs nothing until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tunery_api
from tunery_api import validation

FACE = """
API_VERSION AdapterMergeSpec AdapterMergeStatus AdapterServerSpec AdapterServerStatus BatchInferenceSpec
BatchInferenceStatus ConditionType ExitCode FailureReason FieldError GROUP InvalidSpec KINDS Kind KindDefinition
LoRAJobSpec LoRAJobStatus MANIFEST_NAME Manifest Phase PreflightReport RunResult RunSpec Task VERSION
parse_adaptermerge parse_adapterserver parse_batchinference parse_lorajob
"""


def test_every_exported_name_comes_from_its_home() -> None:
    assert all(getattr(tunery_api, name) is not None for name in tunery_api.__all__)
    assert tunery_api.parse_lorajob is validation.parse_lorajob


def test_the_face_is_what_programs_outside_use() -> None:
    """A name that goes breaks them: this list is changed with the changelog."""
    assert sorted(tunery_api.__all__) == sorted(FACE.split())


def test_an_unknown_name_is_told_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'tunery_api' has no attribute 'LoRASweep'"):
        _ = tunery_api.LoRASweep  # type: ignore[attr-defined]


def test_importing_the_api_loads_no_model() -> None:
    code = "import sys, tunery_api; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
