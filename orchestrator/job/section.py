"""What all sections of a job have in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

Key = tuple[str, ...]  # the path of a value in a job: ("train", "lr")


class Section(BaseModel):
    """Frozen; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        wanted = cls.model_fields[info.field_name].annotation
        allowed = bool in (wanted, *get_args(wanted))
        if isinstance(value, bool) and not allowed:  # it would pass for 0 or 1
            raise ValueError("is a truth value, not a number or text")
        return value
