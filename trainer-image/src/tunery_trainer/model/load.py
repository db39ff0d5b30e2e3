"""The base model and its tokenizer, from a local folder, without ever running code from it."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from tunery_api.methods import PROMPT_LEARNING
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.weight_files import CONFIG, check_weight_files, damaged_text, local_files
from tunery_trainer.model.attention import BY_EXAMPLE, works_on
from tunery_trainer.model.example_isolation import Isolation, isolation
from tunery_trainer.model.language_part import TEXT_OF_IMAGE_TEXT, auto_class, model_class, name_backbone
from tunery_trainer.model.leftover import check_leftover
from tunery_trainer.model.loading import check_complete, loading
from tunery_trainer.model.quantization import bitsandbytes_config, dtype_of
from tunery_trainer.model.targets import expert_names, expert_parameters
from tunery_trainer.process.memory import nothing_hoarded
from tunery_trainer.settings.stored_quantization import check_types, stored_quantization
from tunery_trainer.settings.types import ModelFacts, RunSettings

_SEES_AHEAD: Final = (
    "model type {kind!r}, as config.json has it, reads a text from both sides: what it says of a token depends on "
    "those after it, so it would learn to copy what it is asked, and write nothing"
)
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", CONFIG)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model in `folder`, with a padding token but no token added.

    Padding is masked out of attention and loss, so the end-of-text token serves where there is no other.
    Raises TuneryError(ModelUnsupported).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise damaged_text(folder, _TOKENIZER_FILES) or TuneryError(
            FailureReason.MODEL_UNSUPPORTED, f"spec.model.uri: the folder has no usable tokenizer: {first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise TuneryError(
            FailureReason.MODEL_UNSUPPORTED, "spec.model.uri: the tokenizer has neither a padding nor an end token"
        )
    return tokenizer


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration in `folder`, checked to be of a language model that can be trained.

    With its quantization_config, where its weights are quantised already. Raises TuneryError(ModelUnsupported).
    """
    raw = _read_config(folder)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = "needs code of its own" if "auto_map" in raw else f"cannot be read: {first_line(error)}"
        kind = raw.get("model_type", "unknown")
        raise _unsupported(f"model type {kind!r} {cause}") from error
    except StrictDataclassError as error:
        raise _impossible(error.__cause__ or error) from error
    if auto_class(config) is None:
        raise _unsupported(_no_language_model(config))
    stored_quantization(raw)
    return config


def check_weights(folder: Path) -> None:
    """Check that `folder` has whole safetensors files, of which all is there but the values' being right.

    Raises TuneryError(ModelUnsupported), which names a file that is damaged, and the storage reasons.
    """
    if any(folder.glob("*.safetensors")):
        files = local_files(folder)
        check_types(files.config, check_weight_files(files))
        return
    pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    found = f"it has {pickled[0]}, which could run code when loaded" if pickled else "it has no weights"
    raise _unsupported(f"no *.safetensors in the folder; {found}")


def meta_model(folder: Path) -> PreTrainedModel:
    """Return the model built from config.json on the meta device: its structure, without memory for weights.

    Raises TuneryError(ModelUnsupported).
    """
    config = _unquantized(load_config(folder))
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(
                config, dtype=torch.bfloat16, attn_implementation=_attention(config), trust_remote_code=False
            )
    except ImportError as error:  # towers such as Gemma 3n's
        cause = f"model type {config.model_type!r} needs a library that is not here: {first_line(error)}"
        raise _unsupported(f"{cause}; use another model") from error
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _impossible(error) from error


def _impossible(error: BaseException) -> TuneryError:
    """Return the failure for a config.json with values that no model can have."""
    return _unsupported(f"no model can be built from config.json: {first_line(error)}")


def model_facts(folder: Path) -> ModelFacts:
    """Return what config.json tells about the model in `folder`; raises TuneryError(ModelUnsupported)."""
    return facts_of(meta_model(folder), folder)


def facts_of(model: PreTrainedModel, folder: Path) -> ModelFacts:
    """Return what is known of `model`, which `meta_model` has built from `folder`.

    Raises TuneryError(ModelUnsupported) where it is one that sees the tokens which it is to say.
    """
    text = model.config.get_text_config()
    isolated = _isolation(model.config)
    if not isolated.causal:
        raise _unsupported(_SEES_AHEAD.format(kind=model.config.model_type))
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return ModelFacts(
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        max_positions=int(positions) if positions else None,
        tied_embeddings=_tied(model),
        packable=isolated.packable,
        stored=stored_quantization(_read_config(folder)),
        experts=expert_names(model),
        expert_parameters=sum(model.get_parameter(path).numel() for path in expert_parameters(model)),
    )


@dataclass(frozen=True)
class Loading:
    """How the weights of a model come into memory."""

    dtype: torch.dtype
    device: torch.device
    quantization: Any = None
    """transformers' configuration of it; None: as it is stored."""
    attention: str | None = None
    """A name of transformers' attention functions; None: what transformers takes."""


def load_frozen(folder: Path, how: Loading) -> PreTrainedModel:
    """Return the model in `folder`, loaded by the class that `auto_class` names, without gradients.

    Raises TuneryError(ModelUnsupported), and what `loading` raises.
    """
    config = load_config(folder)
    check_weights(folder)
    options: dict[str, Any] = {"quantization_config": how.quantization} if how.quantization else {}
    on_cpu = how.device.type == "cpu"
    with nothing_hoarded() if on_cpu else nullcontext(), loading():
        found = auto_class(config).from_pretrained(
            str(folder),
            config=config,
            dtype=how.dtype,
            attn_implementation=how.attention,
            device_map={"": str(how.device)},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        if on_cpu and getattr(found[0], "is_quantized", False):
            _let_go_of_files(found[0])
    model: PreTrainedModel = found[0]
    check_complete(found[1]["missing_keys"])
    check_leftover(model, found[1]["unexpected_keys"])
    name_backbone(model)
    model.requires_grad_(False)
    return model


def _let_go_of_files(model: PreTrainedModel) -> None:
    """Copy what was not quantised.

    As it was not converted it is pages of the weights' file, and holds all of it mapped, of which it is a small part.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def load_base(
    folder: Path, resolved: RunSettings, device: torch.device | str, trained_on: torch.device | str | None = None
) -> PreTrainedModel:
    """Return the frozen base model in `folder` on `device`, quantised as `resolved` says, in the run's precision.

    `trained_on` is the device that it will be brought to; None: it stays. Raises TuneryError(ModelUnsupported).
    """
    place, dtype, quantization = torch.device(device), dtype_of(resolved.training.precision), resolved.quantization
    computes = torch.device(trained_on or device)
    stored = quantization is not None and quantization.stored
    model = load_frozen(
        folder,
        Loading(
            dtype,
            place,
            bitsandbytes_config(quantization) if quantization and not stored else None,
            _training_attention(load_config(folder), resolved, computes),
        ),
    )
    if quantization and stored:
        _compute_in(model, dtype_of(quantization.compute_type), dtype)
    # A cache would hide from the attention mask that positions start anew inside a packed row.
    text = model.config.get_text_config()
    model.config.use_cache = text.use_cache = False
    if getattr(text, "output_router_logits", False):
        # What keeps a mixture's routers balanced has nothing to change where they are frozen.
        text.output_router_logits = False
    _keep_gradients(model)
    return model


def _compute_in(model: PreTrainedModel, compute: torch.dtype, dtype: torch.dtype) -> None:
    """Let a checkpoint that was quantised before compute as one that is quantised here: it brings types of its own.

    What is held in float32 for its precision's sake stays so.
    """
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = compute, True
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16) and not hasattr(tensor, "quant_state"):
            tensor.data = tensor.data.to(dtype)


def _keep_gradients(model: PreTrainedModel) -> None:
    """Forbid bitsandbytes' inference layout of 4-bit weights on CPUs with AVX512-BF16.

    It is entered at the first evaluation and never left, and its product has no backward: every adapter below the
    last layer would silently stop learning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _unsupported("the folder has no config.json") from error
    except ValueError as error:
        raise damaged_text(folder, [CONFIG]) or _unsupported(f"config.json is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _unsupported("config.json is not a JSON object")
    return raw


def _attention(config: PreTrainedConfig) -> str:
    """Return sdpa, or eager for an architecture that has no other."""
    return "sdpa" if model_class(config)._supports_sdpa else "eager"


def _tied(model: PreTrainedModel) -> bool:
    text = model.config.get_text_config()
    return bool(getattr(text, "tie_word_embeddings", getattr(model.config, "tie_word_embeddings", False)))


def _isolation(config: PreTrainedConfig) -> Isolation:
    return isolation(_unquantized(config).get_text_config(), _attention(config))


def _unquantized(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the same model before it was quantised."""
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return plain


def _training_attention(config: PreTrainedConfig, resolved: RunSettings, device: torch.device) -> str:
    """Return the attention to train with: by example where it is exact and the device has it, else masked.

    Virtual tokens come before every row, and belong to no example.
    """
    measured = _isolation(config).attention
    if measured != BY_EXAMPLE or resolved.method in PROMPT_LEARNING:
        return _attention(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    shape = (
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or text.hidden_size // heads,
    )
    return BY_EXAMPLE if works_on(device, dtype_of(resolved.training.precision), shape) else _attention(config)


def _no_language_model(config: PreTrainedConfig) -> str:
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return f"model type {config.model_type!r} is not a causal language model"
    known = ", ".join(sorted(TEXT_OF_IMAGE_TEXT))
    return (
        f"model type {config.model_type!r} reads images, and its language model is not known to train on text alone; "
        f"those of {known} are, and those that AutoModelForCausalLM loads"
    )


def _unsupported(cause: str) -> TuneryError:
    return TuneryError(FailureReason.MODEL_UNSUPPORTED, f"spec.model.uri: {cause}")
