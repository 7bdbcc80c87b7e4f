"""What a site's machine gives to jobs: cores, memory, GPU, and the hours in which it gives nothing."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from fedscan.plan_form import Float, Part, as_tuple

_HOURS = re.compile(r"^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$")


class Limits(Part):
    """Limits of the site's trainer."""

    cores: int = Field(default=1, ge=1, le=1024, description="CPU threads of the trainer")
    memory_gib: Float | None = Field(
        default=None, gt=0.0, le=65_536.0, description="memory that the trainer may allocate, in GiB; null: no limit"
    )
    gpu: bool = Field(default=False, description="whether the trainer may use a GPU")
    quiet_hours: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        max_length=24,
        description='local times in which nothing is trained, such as ["07:30-18:00"]; over midnight: ["22:00-06:00"]',
    )

    @field_validator("quiet_hours")
    @classmethod
    def _are_hours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [item for item in value if not _HOURS.fullmatch(item)]:
            raise ValueError(f'quiet_hours must be times such as "07:30-18:00", got {wrong[0]!r:.40}')
        return value

    def quiet_now(self, now: datetime) -> str | None:
        """The quiet hours in which `now` (local time) lies; None outside of them."""
        minute = now.hour * 60 + now.minute
        for item in self.quiet_hours:
            start, end = (int(time[:2]) * 60 + int(time[3:]) for time in item.split("-"))
            inside = start <= minute < end if start < end else minute >= start or minute < end
            if inside:
                return item
        return None
