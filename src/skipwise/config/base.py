"""Types that all settings share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from skipwise.window import parse_length


def as_length(value: Any) -> Any:
    """A length as `parse_length` reads it; None and booleans as they are, for pydantic to judge."""
    # pydantic lets a ConfigError through, as it is no ValueError; its message names the allowed forms.
    return value if value is None or isinstance(value, bool) else parse_length(value)


Length = Annotated[int, BeforeValidator(as_length)]
"""A number of tokens, or text such as `32k` or `1M`."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class StrictModel(BaseModel):
    """Base of all settings: frozen, no coercion of types, no unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
