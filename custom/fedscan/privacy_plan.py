"""What a job asks for under differential privacy: `PrivacyPlan`. Public constants all: none may follow from data."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fedscan.plan_form import Float, Part

Unit = Literal["patient", "image"]
SiteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class SiteSampling(Part):
    """One site's sampling, from a declared size and never from its data."""

    sample_rate: Float = Field(gt=0.0, le=1.0, description="probability with which each patient is drawn in a step")
    expected_patients_per_step: Float = Field(
        gt=0.0,
        le=1e9,
        description="sample_rate times the declared number of patients; every step's sum is divided by it",
    )

    @property
    def declared_patients(self) -> float:
        """The size that the site declared."""
        return self.expected_patients_per_step / self.sample_rate

    @model_validator(mode="after")
    def _of_somebody(self) -> Self:
        if self.declared_patients < 1.0 - 1e-9:
            raise ValueError(
                f"expected_patients_per_step={self.expected_patients_per_step:g} at sample_rate={self.sample_rate:g} "
                "is less than one patient in all: it is sample_rate times the declared number of patients"
            )
        return self


class LossPlan(Part):
    """The mean loss of a round as a noised number, so that a run under DP has curves. It is charged with the round."""

    noise_multiplier: Float = Field(
        gt=0.0,
        le=1e6,
        description="standard deviation of the noise on a step's sum of losses in units of max_loss; ten times that "
        "of the gradients costs half a percent of noise",
    )
    max_loss: Float = Field(
        default=1.0, gt=0.0, le=1e6, description="a drawn patient's loss is cut to 0 .. max_loss before it is added"
    )


class PrivacyPlan(Part):
    """Differential privacy of a run: DP-SGD by patient with Poisson sampling (Abadi et al. 2016), noise added at each
    site. The guarantee is (epsilon, delta) for adding or removing one patient with all of its slices."""

    unit: Unit = Field(
        default="patient",
        description="what the guarantee is about: a patient; or, weaker, a single image, for pictures without patients",
    )
    noise_multiplier: Float = Field(
        gt=0.0,
        le=1e6,
        description="standard deviation of the noise in units of max_grad_norm; where a template has none, `job new` "
        "finds it from target_epsilon",
    )
    target_epsilon: Float | None = Field(
        default=None,
        gt=0.0,
        le=1e4,
        description="epsilon over all planned rounds that noise_multiplier was found for, at the worst site; a record: "
        "sites judge the noise itself",
    )
    delta: Float = Field(
        gt=0.0,
        le=1e-2,
        description="chance that epsilon does not hold: below one over the number of patients, wisely a tenth of it",
    )
    max_grad_norm: Float = Field(
        default=0.1, gt=0.0, le=1e6, description="L2 norm that one patient's gradient is clipped to"
    )
    sites: dict[SiteName, SiteSampling] = Field(
        min_length=1,
        max_length=10_000,
        description="sampling of each site, by name; `job new --patients` fills it from the sizes that sites declare",
    )
    slices_per_patient: int = Field(
        default=1, ge=1, le=256, description="slices of a drawn patient in a step; repeated where it has fewer"
    )
    noise_draws_per_slice: int = Field(
        default=1,
        ge=1,
        le=256,
        description="steps and diffusion noises drawn for each such slice (noise multiplicity, Dockhorn et al. 2023)",
    )
    trainable: Literal["all", "attention_norm_bias"] = Field(
        default="all", description="parameters that train; the others stay as in the start"
    )
    from_scratch: bool = Field(
        default=False, description="forces DP training without a public start (init_sha256), which is hardly of use"
    )
    loss: LossPlan | None = Field(
        default=None,
        description="answer with the mean loss of the round too, noised and charged; null: no loss leaves. A site's "
        "policy must allow it",
    )
    answer_after_s: Float = Field(
        default=60.0,
        ge=0.0,
        le=604_800.0,
        description="an answer leaves a site so long after its task came, however long training took",
    )

    @property
    def rows_per_patient(self) -> int:
        """Rows of a batch that a drawn patient fills."""
        return self.slices_per_patient * self.noise_draws_per_slice

    @property
    def charged_noise_multiplier(self) -> float:
        """That of a step's releases together: gradient g and loss l of a patient are one vector (g / (s_g C),
        l / (s_l L)) under unit noise, whose norm is at most sqrt(1 / s_g^2 + 1 / s_l^2) (McMahan et al. 2018)."""
        if self.loss is None:
            return self.noise_multiplier
        return 1.0 / math.hypot(1.0 / self.noise_multiplier, 1.0 / self.loss.noise_multiplier)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rows_per_patient > 1024:
            raise ValueError(
                f"slices_per_patient * noise_draws_per_slice must be at most 1024, got {self.rows_per_patient}"
            )
        return self
