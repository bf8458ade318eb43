"""The base of each section of a job: frozen, and strict about keys and types."""

from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


class StrictSection(BaseModel):
    """A frozen section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        allowed = bool in (annotation, *get_args(annotation))
        if isinstance(value, bool) and not allowed:  # it would pass for 0 or 1
            raise ValueError("is a truth value, not a number or text")
        return value


def _of_percent(value: Any) -> Any:
    """0.1 of "10%"; anything else as it is."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip().removesuffix("%")) / 100
        except ValueError:
            return value
    return value


Share = Annotated[float, BeforeValidator(_of_percent), Field(ge=0, le=1)]
