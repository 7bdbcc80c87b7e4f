"""What every part of the plan is made of: frozen, strict, no unknown fields, no infinities."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def as_tuple(value: object) -> object:
    """JSON knows no tuples; strict mode would refuse its lists."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value


def _int_as_float(value: object) -> object:
    """JSON writes 1.0 as 1 in many tools; the canonical form writes it as 1.0 again."""
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        raise ValueError("must be a number below 1.8e308") from None


Float = Annotated[float, BeforeValidator(_int_as_float)]


class Part(BaseModel):
    """A frozen, strict part of a plan."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
