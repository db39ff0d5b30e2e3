"""What a run is estimated to take: status.estimate of a LoRAJob."""

from __future__ import annotations

from pydantic import Field

from tunery_api.fields import OpenModel


class EstimateStatus(OpenModel):
    """What a run is estimated to take, in parts; those in bytes make status.memory.estimateBytes."""

    weights_bytes: int | None = Field(None, ge=0, description="The frozen base model, as it is stored on the device.")
    adapter_bytes: int | None = Field(None, ge=0, description="What is trained.")
    gradients_bytes: int | None = Field(None, ge=0, description="Its gradients.")
    optimizer_bytes: int | None = Field(None, ge=0, description="The optimizer's state, and AdaLoRA's importances.")
    activations_bytes: int | None = Field(
        None, ge=0, description="What a batch leaves for the backward pass, by training.batchSize and its rows' length."
    )
    workspace_bytes: int | None = Field(
        None,
        ge=0,
        description="What the backward pass works with: a tile of logits, a layer computed again, an expanded weight.",
    )
    overhead_bytes: int | None = Field(None, ge=0, description="The process itself and its libraries.")
    slack_bytes: int | None = Field(None, ge=0, description="What the allocator loses between tensors.")
    row_bytes: int | None = Field(None, ge=0, description="What one more row in a batch takes.")
    steps: int | None = Field(None, ge=0, description="Optimizer steps of the whole run.")
    tokens: int | None = Field(None, ge=0, description="Tokens that they see, about.")
