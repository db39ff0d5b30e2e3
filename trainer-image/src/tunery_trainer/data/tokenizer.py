"""What the data layer asks of a tokenizer: as much of transformers' fast ones as it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tokenizer(Protocol):
    """A tokenizer with a tokenizer.json."""

    is_fast: bool
    """Whether it knows which characters a token stands for."""
    chat_template: Any
    backend_tokenizer: Any

    @property
    def eos_token(self) -> Any:
        """The text that ends an answer, if there is one."""
        ...

    @property
    def eos_token_id(self) -> Any:
        """Its number."""
        ...

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """Text by use, such as eos_token."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens beside the vocabulary, special ones among them, by number."""
        ...

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Return token ids, and the characters that each stands for."""
        ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Return a conversation as text."""
        ...
