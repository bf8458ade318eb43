"""The fields that requests for text share, whether completions or chats."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.model.generate import Sampling

MAX_STOPS = 32
MAX_STOP_LENGTH = 200  # characters


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False  # against listeners on the network: there is none to add


class TextRequest(BaseModel):
    """Unknown fields are refused, not ignored; null stands for a field's default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    # Fields of OpenAI's that clients send by default. Only these values, and null, are accepted.
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "presence_penalty": (0,),
    }
    required: ClassVar[str]

    model: str | None = Field(None, max_length=200)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)  # not in OpenAI's API, but common; 0: no limit
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)  # not OpenAI's either; 1: no penalty
    n: int = Field(1, ge=1, le=8)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=200)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        """Drop what changes nothing: null for a default, and the values in `neutral`."""
        if not isinstance(data, dict):
            return data
        neutral = {**TextRequest.neutral, **cls.neutral}
        fields = (cls.model_fields.keys() | neutral.keys()) - {cls.required}
        return {
            name: value
            for name, value in data.items()
            if not (name in fields and (value is None or _is_among(value, neutral.get(name, ()))))
        }

    @model_validator(mode="after")
    def _check_shared(self) -> "TextRequest":
        if len(self.stops) > MAX_STOPS or any(
            not 0 < len(stop) <= MAX_STOP_LENGTH for stop in self.stops
        ):
            raise ValueError(
                f"stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters"
            )
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belongs to stream: true")
        return self

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Whether the last chunk of the stream has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, choice: int) -> Sampling:
        """How the tokens of a choice are drawn. Each has a seed of its own, if there is one."""
        seed = None if self.seed is None else self.seed + choice
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty, seed)


def require_unicode(name: str, text: str) -> None:
    """Raises ValueError if a text has half of a character that JSON writes in two parts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not valid Unicode") from None


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of some; false is not 0."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in values
    )
