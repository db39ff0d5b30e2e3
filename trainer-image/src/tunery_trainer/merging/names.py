"""What the model calls the tensors of a file: checkpoints that read images, too, keep the names of their makers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def model_names(config: dict[str, Any], tensors: Iterable[str]) -> dict[str, str]:
    """Return the model's name of each tensor to the file's, where transformers renames it when it loads.

    Adapters bear the model's names. Only checkpoints with a part for text are looked at; the model is built without
    weights. Empty for what transformers does not know.
    """
    if not isinstance(config.get("text_config"), dict):
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    from tunery_trainer.merging.without_weights import UNKNOWN, meta_model

    try:
        model = meta_model(config)
    except UNKNOWN:
        return {}
    known = model.state_dict()
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    renamed = {rename_source_key(name, renamings, [], model.base_model_prefix, known)[0]: name for name in tensors}
    return {name: source for name, source in renamed.items() if name in known and name != source}
