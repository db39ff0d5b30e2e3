"""Which architectures of the installed transformers may be packed: `python -m bench.isolation` prints docs' table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunery_trainer.model.example_isolation import Isolation, isolation

TABLE = "### Which models are packed"
_UNKNOWN = Isolation("sdpa", packable=False, measured=False)


def classes() -> list[str]:
    """Return the types of all causal language models, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def measured(model_type: str) -> Isolation:
    """Measure one architecture by its default configuration, made small."""
    try:
        config = AutoConfig.for_model(model_type).get_text_config()
        own = "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"
    except Exception:  # noqa: BLE001 (a configuration without its required values may raise anything)
        return _UNKNOWN
    return isolation(config, own)


def _lines() -> Iterator[str]:
    kinds: dict[str, list[str]] = {"packed": [], "not packed": [], "not measured": []}
    for model_type in classes():
        found = measured(model_type)
        kinds["packed" if found.packable else "not packed" if found.measured else "not measured"].append(model_type)
    yield "| | model types |\n|---|---|"
    for kind, names in kinds.items():
        yield f"| {kind} | {', '.join(f'`{name}`' for name in names)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(_lines()))
