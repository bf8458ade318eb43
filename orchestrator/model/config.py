"""The architecture of a Transformer: the `model:` section of a job."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Family = Literal["decoder", "encoder", "encoder_decoder"]

# The defaults of each family: modern parts, in a combination that one of Hugging Face's
# architectures has too, so that every default model can be exported as that architecture.
STYLES: dict[str, dict[str, Any]] = {
    "decoder": {"norm": "rmsnorm", "positions": "rotary", "activation": "relu2"},  # Arcee
    "encoder": {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu"},  # EuroBERT
    "encoder_decoder": {  # mBART
        "norm": "layernorm",
        "positions": "learned",
        "activation": "gelu",
        "bias": True,
        "embedding_norm": True,
        "norm_eps": 1e-5,
    },
}

# Each size sets three values at once. `base` and `large` are those of BERT and GPT-2.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"num_layers": 4, "d_model": 128, "num_heads": 2},
    "small": {"num_layers": 6, "d_model": 256, "num_heads": 4},
    "medium": {"num_layers": 8, "d_model": 512, "num_heads": 8},
    "base": {"num_layers": 12, "d_model": 768, "num_heads": 12},
    "large": {"num_layers": 24, "d_model": 1024, "num_heads": 16},
}


class Patches(BaseModel):
    """Images as input in place of tokens: each patch, a square of pixels, becomes a vector
    (Dosovitskiy et al. 2021)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(ge=1, description="pixels of a side of the square image")
    patch_size: int = Field(ge=1, description="pixels of a side of a patch")
    channels: int = Field(3, ge=1, description="1: grey, 3: colour")

    @model_validator(mode="after")
    def _patches_cover_image(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size = {self.patch_size} does not divide image_size {self.image_size}"
            )
        return self

    @property
    def count(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


class ModelConfig(BaseModel):
    """A Transformer's architecture. The vocabulary is not part of it: it comes from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Family = Field(
        "decoder", description="the stacks of blocks; sets the defaults of norm, positions, …"
    )
    size: Literal["tiny", "small", "medium", "base", "large"] | None = Field(
        None,
        exclude=True,  # the values that it sets are kept
        description="sets layers, width and heads; if none of these is set, the size of the data "
        "and train.minutes decide",
    )
    num_layers: int = Field(4, ge=1, description="number of Transformer blocks in each stack")
    num_decoder_layers: int | None = Field(
        None, ge=1, description="number of decoder blocks in an encoder_decoder; default num_layers"
    )
    d_model: int = Field(192, ge=8, description="width of the residual stream")
    num_heads: int = Field(6, ge=1, description="attention heads; must divide d_model")
    num_kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values; must divide num_heads; default num_heads"
    )
    head_dim: int | None = Field(
        None, ge=1, description="width of a head; default d_model / num_heads"
    )
    d_ff: int | None = Field(
        None, ge=8, description="feed-forward width; default 4 d_model, or 8/3 d_model with a gate"
    )
    max_seq_len: int = Field(256, ge=2, description="context in tokens; also the block length")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="normalisation")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="before attention and feed-forward, or after them"
    )
    norm_eps: float = Field(1e-6, gt=0, description="added to the variance in a norm")
    positions: Literal["rotary", "relative", "learned", "sinusoidal"] = Field(
        "rotary", description="encoding of a token's position"
    )
    rope_theta: float = Field(10_000.0, gt=0, description="base of rotary positions' wavelengths")
    activation: Literal[
        "gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu", "geglu", "geglu_tanh"
    ] = Field("relu2", description="feed-forward nonlinearity")
    bias: bool = Field(False, description="linear maps add a vector")
    embedding_norm: bool = Field(False, description="normalise embeddings too, as BERT and BART do")
    token_types: int = Field(0, ge=0, description="number of segment types, 2 in BERT; 0: none")
    tie_embeddings: bool = Field(True, description="output head shares the embedding's weights")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the residual branches")
    init_from: str | None = Field(
        None,
        min_length=1,
        description="a folder or URI in Hugging Face's layout, for example an export: the model "
        "starts from its weights, sizes and tokenizer; a relative path starts at the working "
        "directory",
    )
    patches: Patches | None = Field(None, description="images as input, in place of tokens")

    @model_validator(mode="before")
    @classmethod
    def _style_of_family(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        family, size = values.get("family", "decoder"), values.get("size")
        style = STYLES.get(family if isinstance(family, str) else "", {})
        return {**style, **SIZES.get(size if isinstance(size, str) else "", {}), **values}

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.d_model % self.num_heads:
            raise ValueError(f"num_heads = {self.num_heads} does not divide d_model {self.d_model}")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads = {self.kv_heads} does not divide num_heads {self.num_heads}"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(
                f"rotary positions need an even head width, not d_model / num_heads = "
                f"{self.d_model} / {self.num_heads} = {self.head_width}"
                if self.head_dim is None
                else f"rotary positions need an even head_dim, not {self.head_dim}"
            )
        if self.num_decoder_layers is not None and self.family != "encoder_decoder":
            raise ValueError("num_decoder_layers is for family = encoder_decoder")
        if self.patches is not None and self.family != "encoder":
            raise ValueError("patches are for family = encoder")
        return self

    @property
    def head_width(self) -> int:
        """The width of a head: `head_dim`, or the heads share d_model."""
        return self.head_dim if self.head_dim is not None else self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """The heads of keys and values: `num_kv_heads`, or one for each query head."""
        return self.num_kv_heads if self.num_kv_heads is not None else self.num_heads

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate, a third linear map."""
        return self.activation in ("swiglu", "geglu", "geglu_tanh")

    @property
    def feed_forward_width(self) -> int:
        """`d_ff` if set; else the width at which the feed-forward has 8 d_model^2 parameters,
        rounded up to a multiple of 16 with a gate."""
        if self.d_ff is not None:
            return self.d_ff
        if self.is_gated:  # three linear maps instead of two
            return -(-8 * self.d_model // (3 * 16)) * 16
        return 4 * self.d_model

    @property
    def layers_to_decode(self) -> int:
        """The number of blocks of the decoder, or of the only stack."""
        if self.num_decoder_layers is not None:
            return self.num_decoder_layers
        return self.num_layers
