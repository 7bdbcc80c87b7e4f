"""The plan's fields as rows: name, default, bounds, meaning. `fedscan job fields` and docs/plan.md show them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedscan.plan import Plan

Row = tuple[str, str, str, str]
COLUMNS = ("field", "default", "allowed", "meaning")


def rows(model: type[BaseModel] = Plan, prefix: str = "") -> Iterator[Row]:
    """One row for each field, parts of the plan unfolded; NAME stands for a key of one's own."""
    for name, field in model.model_fields.items():
        inner = _part(field)
        if inner is not None:
            if field.description:
                yield prefix + name, _default(field), "", field.description
            yield from rows(
                inner, f"{prefix}{name}.NAME." if get_origin(field.annotation) is dict else f"{prefix}{name}."
            )
        else:
            yield prefix + name, _default(field), _allowed(field), field.description or ""


def markdown() -> str:
    """The page docs/plan.md."""
    lines = [
        "# The plan",
        "",
        "Made by `fedscan job fields --markdown`. Set a field with `fedscan job new ... --set FIELD=VALUE`.",
        "",
    ]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {default} | {allowed} | {meaning} |" for name, default, allowed, meaning in rows()]
    return "\n".join(lines) + "\n"


def _part(field: FieldInfo) -> type[BaseModel] | None:
    candidates: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else "its parts' defaults"
    return "null" if field.default is None else str(field.default).replace("()", "[]")


def _allowed(field: FieldInfo) -> str:
    choices = [
        str(c) for a in (field.annotation, *get_args(field.annotation)) for c in get_args(a) if isinstance(c, str | int)
    ]
    if choices:
        return ", ".join(choices)
    bounds = []
    for item in field.metadata:
        for sign, text in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            value = getattr(item, sign, None)
            if value is not None:
                bounds.append(f"{text} {value}")
    return ", ".join(bounds)
