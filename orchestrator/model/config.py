"""The size and the kind of a Transformer: the `model:` section of a job."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """A Transformer's architecture, without its vocabulary, which comes with the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["decoder"] = Field("decoder", description="which stack of blocks")
    num_layers: int = Field(4, ge=1, description="number of Transformer blocks")
    d_model: int = Field(192, ge=8, description="width of the residual stream")
    num_heads: int = Field(6, ge=1, description="attention heads; must divide d_model")
    d_ff: int | None = Field(
        None, ge=8, description="feed-forward width; 4 d_model, or 8/3 of it with swiglu"
    )
    max_seq_len: int = Field(256, ge=2, description="context in tokens; also the block length")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="normalisation")
    positions: Literal["rotary", "learned", "sinusoidal"] = Field(
        "rotary", description="how a token's position enters"
    )
    activation: Literal["gelu", "relu2", "swiglu"] = Field(
        "relu2", description="feed-forward nonlinearity"
    )
    tie_embeddings: bool = Field(True, description="output head shares the embedding's weights")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the residual branches")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads = {self.num_heads} does not divide d_model {self.d_model}")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(
                f"rotary positions need an even head width, not d_model / num_heads = "
                f"{self.d_model} / {self.num_heads} = {self.head_width}"
            )
        return self

    @property
    def head_width(self) -> int:
        return self.d_model // self.num_heads

    @property
    def feed_forward_width(self) -> int:
        """`d_ff` where given; otherwise the width that costs 8 d_model^2 parameters a block."""
        if self.d_ff is not None:
            return self.d_ff
        if self.activation == "swiglu":  # three matrices instead of two
            return -(-8 * self.d_model // (3 * 16)) * 16
        return 4 * self.d_model
