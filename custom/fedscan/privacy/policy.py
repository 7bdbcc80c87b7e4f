"""What a site allows: `Policy`. A file of the site's own; a new one demands differential privacy by patient."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from fedscan.plan_form import Float, Part, as_tuple

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
AllowedAnswer = Literal["update", "loss"]
"""What a plan under DP may send back; a loss is noised and charged with its round."""


class Policy(Part):
    """The site's own rules for jobs. Every default is the private one; an unknown field is an error."""

    policy_version: Literal[1] = Field(description="version of this form")
    require_dp: bool = Field(default=True, description="refuse every plan without differential privacy")
    max_epsilon: Float = Field(
        default=8.0, gt=0.0, le=1e4, description="the site's whole budget, over all jobs for ever, at max_delta"
    )
    max_delta: Float = Field(
        default=1e-4,
        gt=0.0,
        le=1e-2,
        description="delta of the budget, and the largest of a plan; must be below 1 / patients of the store",
    )
    min_patients: int = Field(
        default=100, ge=1, le=10**9, description="patients in the store's train split, at least; images of pictures"
    )
    min_noise_multiplier: Float = Field(default=0.3, gt=0.0, le=1e6, description="smallest noise of a plan")
    max_rounds: int = Field(default=1000, ge=1, le=100_000, description="largest number of rounds of a plan")
    answers: Annotated[tuple[AllowedAnswer, ...], BeforeValidator(as_tuple)] = Field(
        default=("update",),
        max_length=2,
        description='what may leave under DP: `["update"]`; `["update", "loss"]`: and the mean loss of a round, noised '
        "and charged; `[]`: nothing does",
    )
    allowed_submitters: Annotated[Literal["any"] | tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default="any",
        description="who may submit: `any` lead of the federation, or a list of certificates' names and "
        "SHA-256 fingerprints (64 hexadecimal digits)",
    )
    approval: Literal["automatic", "by_digest"] = Field(
        default="automatic",
        description="`automatic`: what this policy allows is run; `by_digest`: and `fedscan site approve` named it",
    )
    allow_image_unit: bool = Field(
        default=False, description="take stores and plans whose unit is the image, for pictures without patients"
    )
    allow_reproducible_noise: bool = Field(
        default=False, description="for demonstrations on public data alone: noise that anybody can repeat"
    )

    def allows(self, name: str, fingerprint: str) -> bool:
        """Whether a submitter may submit, by the certificate's name or SHA-256 fingerprint."""
        if self.allowed_submitters == "any" or fingerprint in self.allowed_submitters:
            return True
        return name in self.allowed_submitters and not _FINGERPRINT.fullmatch(name)


@dataclass(frozen=True)
class Unreadable:
    """Stands where a file could not be understood; `judge` refuses with these reasons."""

    reasons: tuple[str, ...]


def complaints(error: ValidationError, what: str) -> tuple[str, ...]:
    """pydantic's complaints, one for each field; they name what is wanted. Names of fields may be hostile."""
    found = []
    for item in error.errors(include_url=False, include_input=False):
        field = "".join(c if c.isprintable() else "?" for c in ".".join(str(part) for part in item["loc"]))[:120]
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "there is no such field: delete it, or look for a misspelling"
        found.append(f"{what}: {field}: {text}" if field else f"{what}: {text}")
    return tuple(found)
