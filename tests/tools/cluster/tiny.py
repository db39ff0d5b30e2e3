"""Models of a few kilobytes with real architectures and a real tokenizer, for tests of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

SEED = 20
VOCABULARY = 320
HIDDEN, LAYERS, HEADS, POSITIONS = 64, 2, 4, 512
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "Who wrote Hamlet? William Shakespeare wrote Hamlet.",
    "system user assistant question answer hello there how are you today",
]


def make_tiny_model(path: Path, architecture: str = "llama") -> Path:
    """Write a random model with tokenizer into `path` and return it; the same files each time.

    `architecture` is a `model_type`: llama, mistral, qwen3, gemma, phi, gpt2, falcon or bloom.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(_config(architecture), dtype=torch.float32)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    for file in path.iterdir():
        file.chmod(0o644)
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a chat template: it encodes any text and decodes it unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    pad, start, end = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad)
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = POSITIONS
    return fast


def _config(architecture: str) -> PretrainedConfig:
    from transformers import AutoConfig

    shared = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(architecture, **shared, **_sizes(architecture))


def _sizes(architecture: str) -> dict[str, Any]:
    if architecture == "gpt2":
        return {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
    if architecture == "bloom":
        return {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    if architecture == "falcon":
        return {**sizes, "max_position_embeddings": POSITIONS}
    sizes |= {"intermediate_size": 2 * HIDDEN, "max_position_embeddings": POSITIONS}
    if architecture == "phi":
        return sizes
    sizes |= {"num_key_value_heads": HEADS // 2, "tie_word_embeddings": True}
    return sizes | ({"head_dim": HIDDEN // HEADS} if architecture in ("qwen3", "gemma") else {})
