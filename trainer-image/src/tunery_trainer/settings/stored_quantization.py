"""How the weights of a checkpoint are stored: as floating point, by bitsandbytes, or so that nothing trains on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import LoraInit, Method, QuantizationType
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.settings.types import StoredQuantization

_NAMES: Final = {
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "FP8",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
}
"""What people call the methods that are met most."""

_QUANTISED: Final = ("I", "U", "F8_", "F6_", "F4")
"""How the safetensors format's names of types begin that hold no weights as they are."""
_WEIGHTS: Final = (".weight", "_proj")
"""How the names of weights end; masks and counters, which are of such types rightly, bear others."""

_DIFFERS: Final = "the base is quantised already, with {}; leave it out"


def stored_quantization(config: Mapping[str, Any]) -> StoredQuantization | None:
    """Return how the weights of the model with this config.json are quantised, None where they are not.

    Raises TuneryError(ModelUnsupported) for every other library than bitsandbytes, naming what to use instead.
    """
    block = _block(config)
    if not block:
        return None
    eight, four = bool(block.get("load_in_8bit")), bool(block.get("load_in_4bit"))
    method = str(block.get("quant_method") or ("bitsandbytes" if eight or four else "unknown"))
    if method != "bitsandbytes" or eight == four:
        raise _refused(method)
    skipped = tuple(block.get("llm_int8_skip_modules") or ())
    if eight:
        return StoredQuantization(QuantizationType.INT8, double_quant=False, skipped=skipped)
    four_bit = QuantizationType.NF4 if block.get("bnb_4bit_quant_type") == "nf4" else QuantizationType.FP4
    return StoredQuantization(four_bit, bool(block.get("bnb_4bit_use_double_quant")), skipped)


def check_types(config: Mapping[str, Any], types: Mapping[str, Mapping[str, str]]) -> None:
    """Check that no weight of an unquantised model is of a type of 8 bits or of whole numbers.

    `types` has of each file the safetensors format's name of each tensor's type. Raises TuneryError(ModelUnsupported):
    what scales such numbers would be left out, and they be taken for the weights themselves.
    """
    if _block(config):
        return
    told = ((file, name, kind) for file, tensors in types.items() for name, kind in tensors.items())
    found = [each for each in told if each[1].endswith(_WEIGHTS) and each[2].startswith(_QUANTISED)]
    if not found:
        return
    file, name, kind = found[0]
    more = f", and so are {len(found) - 1} more" if len(found) > 1 else ""
    raise TuneryError(
        FailureReason.MODEL_UNSUPPORTED,
        f"spec.model.uri: {name} in {file} is of type {kind}{more}: a quantised tensor, and config.json has no "
        "quantization_config that says how",
        retry("If bitsandbytes quantized it, restore quantization_config in its config.json"),
        recreate("Name the 16-bit or 32-bit model that it was made from", "model.uri"),
    )


def check_stored(spec: LoRAJobSpec, method: Method, stored: StoredQuantization) -> None:
    """Check that `method`, which is never Auto, and `spec` fit a base that is quantised already.

    Raises TuneryError(InvalidSpec) naming the field and what to do.
    """
    if method in (Method.LORA, Method.DORA):
        raise _invalid(
            f"method: {method} trains on an unquantised base, this one's weights are {stored.type}; use Q{method}"
        )
    if method is Method.QDORA and stored.type is QuantizationType.INT8:
        raise _invalid("method: QDoRA works on 4 bits, this base's weights are Int8; use QLoRA")
    if spec.lora.init is LoraInit.LOFTQ:
        raise _invalid(
            "lora.init: LoftQ makes up for what quantising took away, and a base that is quantised already has nothing "
            "else; use another init"
        )
    block = spec.quantization
    if block and "type" in block.model_fields_set and block.type is not stored.type:
        raise _invalid(f"quantization.type: is {block.type}, but {_DIFFERS.format(stored.type)}")
    if block and "double_quant" in block.model_fields_set and block.double_quant is not stored.double_quant:
        said, found = (str(value).lower() for value in (block.double_quant, stored.double_quant))
        raise _invalid(f"quantization.doubleQuant: is {said}, but {_DIFFERS.format(found)}")


def _block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return quantization_config, which may stand beside the language model's settings, or bear its older name."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            block = part.get("quantization_config") or part.get("compression_config")
            if isinstance(block, Mapping) and block:
                return block
    return {}


def _invalid(message: str) -> TuneryError:
    return TuneryError(FailureReason.INVALID_SPEC, f"spec.{message}")


def _refused(method: str) -> TuneryError:
    return TuneryError(
        FailureReason.MODEL_UNSUPPORTED,
        f"spec.model.uri: its weights are already quantised by {_NAMES.get(method, method)}, which no adapter is "
        "trained on here; name the 16-bit model that it was made from, with method: QLoRA to hold it in 4 bits, or a "
        "checkpoint quantised by bitsandbytes",
    )
