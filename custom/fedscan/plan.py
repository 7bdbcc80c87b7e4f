"""What a job asks for: `Plan`, its parts and presets, its canonical form and digest, and the `Submission` beside it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedscan.aggregation_plan import AggregationPlan
from fedscan.plan_form import Float, Part, as_tuple
from fedscan.privacy_plan import PrivacyPlan

Preset = Literal["tiny", "small", "medium"]
MOST_CLASS_CHARACTERS = 200
Window = Literal["full", "lung", "mediastinum", "bone"]


class UNet(Part):
    """Arguments of MONAI's DiffusionModelUNet (2-D). See monai.networks.nets.DiffusionModelUNet."""

    channels: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = Field(
        min_length=2, max_length=6, description="features at each level; multiples of norm_num_groups"
    )
    attention_levels: Annotated[tuple[bool, ...], BeforeValidator(as_tuple)] = Field(
        description="self-attention at each level (the middle block always has it)"
    )
    num_res_blocks: int = Field(default=1, ge=1, le=4, description="residual blocks a level")
    norm_num_groups: int = Field(default=8, ge=1, le=64, description="groups of each GroupNorm")
    num_head_channels: int = Field(default=32, ge=4, le=256, description="channels of an attention head")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.attention_levels) != len(self.channels):
            raise ValueError(
                f"attention_levels must have one entry a level: got {len(self.attention_levels)}, "
                f"wanted {len(self.channels)} as in channels {self.channels}"
            )
        if any(not 8 <= c <= 1024 for c in self.channels):
            raise ValueError(f"channels must lie in 8..1024, got {self.channels}")
        if odd := [c for c in self.channels if c % self.norm_num_groups]:
            raise ValueError(
                f"channels must be multiples of norm_num_groups={self.norm_num_groups}, got {odd}: "
                "choose other channels or fewer groups"
            )
        if odd := [c for c in self.channels if c == self.norm_num_groups]:
            raise ValueError(
                f"norm_num_groups={self.norm_num_groups} leaves one channel a group at {odd}, whose mean takes time "
                "and label embeddings away again: use fewer groups"
            )
        with_heads = [c for c, a in zip(self.channels, self.attention_levels, strict=True) if a]
        if odd := [c for c in (*with_heads, self.channels[-1]) if c % self.num_head_channels]:
            raise ValueError(
                f"channels with attention, and the last level's, must be multiples of "
                f"num_head_channels={self.num_head_channels}, got {odd}: choose a smaller head"
            )
        return self


PRESETS: dict[Preset, UNet] = {
    "tiny": UNet(channels=(16, 32, 32), attention_levels=(False, False, False), norm_num_groups=8),
    "small": UNet(channels=(32, 64, 64), attention_levels=(False, False, True), norm_num_groups=8),
    "medium": UNet(
        channels=(64, 128, 256), attention_levels=(False, False, True), norm_num_groups=32, num_head_channels=64
    ),
}
"""0.27, 1.11 and 10.9 million parameters."""


class ModelPlan(Part):
    """The network: a preset, or MONAI's arguments in full; what it draws."""

    preset: Preset | None = Field(default="small", description="tiny, small or medium; null with `unet` of your own")
    unet: UNet | None = Field(default=None, description="the arguments in full; filled in from the preset")
    fold: Literal[1, 2, 4] = Field(
        default=2, description="space-to-depth: the net sees fold x fold pixels as channels of a smaller picture"
    )
    size: int = Field(default=64, ge=16, le=512, description="side of a slice in pixels; must match the stores")
    classes: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(), max_length=10_000, description="label names, in order; empty: the model is unconditional"
    )
    class_dropout: Float = Field(
        default=0.1, ge=0.0, lt=1.0, description="share of labels hidden in training, for classifier-free guidance"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("unet") is None and data.get("preset", "small") in PRESETS:
            data = {**data, "unet": PRESETS[data.get("preset", "small")]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unet is None:
            raise ValueError("model needs a preset (tiny, small, medium) or unet: got neither")
        if self.preset is not None and self.unet != PRESETS[self.preset]:
            raise ValueError(
                f"model.unet is not that of preset {self.preset!r}: set preset to null to use arguments of your own"
            )
        step = self.fold * 2 ** (len(self.unet.channels) - 1)
        if self.size % step:
            raise ValueError(
                f"size must be a multiple of fold * 2^(levels-1) = {step}, got {self.size}: use fewer levels or fold"
            )
        if len(set(self.classes)) != len(self.classes) or any(not c for c in self.classes):
            raise ValueError(f"classes must be different and not empty, got {list(self.classes)}")
        if odd := [c for c in self.classes if not c.isprintable() or len(c) > MOST_CLASS_CHARACTERS]:
            raise ValueError(
                f"classes must be of printable characters, at most {MOST_CLASS_CHARACTERS}: got {odd[0][:80]!r}"
            )
        return self

    @property
    def arguments(self) -> UNet:
        """The network's arguments (always present once built)."""
        assert self.unet is not None
        return self.unet


class DiffusionPlan(Part):
    """The process: noise schedule, what the network predicts, how the loss weighs the steps."""

    schedule: Literal["cosine", "linear_beta", "scaled_linear_beta", "sigmoid_beta"] = Field(
        default="cosine", description="MONAI's noise schedule of that name"
    )
    num_train_timesteps: int = Field(default=1000, ge=10, le=4000, description="steps of the schedule")
    prediction: Literal["sample", "v_prediction", "epsilon"] = Field(
        default="sample", description="what the network's output means: the clean image, v, or the noise"
    )
    loss_weighting: Literal["v", "uniform", "epsilon", "min_snr"] = Field(
        default="v",
        description="weight of a step's squared error, expressed in the error of the network's own target: `uniform` "
        "is 1; `v`, `epsilon` make it that of v or of the noise; min_snr: Hang et al. 2023 with gamma 5",
    )
    weight_floor: Float = Field(
        default=0.05, gt=0.0, le=1.0, description="denominators of loss weights are at least this"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.schedule == "cosine" and self.prediction == "epsilon":
            raise ValueError(
                "prediction 'epsilon' divides by the signal's share, which 'cosine' ends at 0.00005: "
                "use prediction 'sample' or 'v_prediction', or another schedule"
            )
        return self


class TrainingPlan(Part):
    """Local training at a site: one round's work and its optimiser."""

    local_epochs: int | None = Field(
        default=None, ge=1, le=1000, description="passes over the site's slices a round; or local_steps"
    )
    local_steps: int | None = Field(
        default=None, ge=1, le=1_000_000, description="gradient steps a round; or local_epochs"
    )
    batch_size: int = Field(
        default=32, ge=1, le=4096, description="slices a gradient step; under privacy the draw of patients decides"
    )
    optimiser: Literal["adamw", "adam"] = Field(default="adamw", description="torch.optim.AdamW or Adam")
    optimiser_state: Literal["keep", "fresh"] = Field(
        default="keep", description="moments kept at the site from round to round, or made anew each round (the paper)"
    )
    learning_rate: Float = Field(default=2e-3, gt=0.0, le=0.1, description="of the optimiser, after warm-up")
    beta1: Float = Field(default=0.9, ge=0.0, lt=1.0, description="decay of the first moment")
    beta2: Float = Field(default=0.99, ge=0.0, lt=1.0, description="decay of the second moment")
    weight_decay: Float = Field(default=0.0, ge=0.0, le=1.0, description="of the optimiser")
    warmup_steps: int = Field(
        default=50, ge=0, le=100_000, description="steps of linear warm-up, counted over the optimiser's life"
    )
    decay: Literal["constant", "cosine"] = Field(
        default="constant", description="of the learning rate over all rounds; cosine ends at a tenth"
    )
    gradient_clip_norm: Float = Field(
        default=1.0,
        gt=0.0,
        le=1e6,
        description="L2 norm that a step's gradient keeps; under privacy privacy.max_grad_norm bounds each patient's",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast where the processor gains by it (weights stay float32)"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("local_epochs") is None and data.get("local_steps") is None:
            data = {**data, "local_epochs": 1}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError(
                f"local_epochs={self.local_epochs} and local_steps={self.local_steps} contradict: set one to null"
            )
        return self


class EmaPlan(Part):
    """Exponential moving average of the global model over rounds, at the server; it is what samples are drawn from."""

    half_life_rounds: Float = Field(
        default=2.0, ge=0.0, le=10_000.0, description="rounds in which an old model's share halves; 0: no average"
    )


class Plan(Part):
    """All that decides a run, and nothing else. Frozen, strict; unknown fields and infinities are refused.

    Source of the identity: SHA-256 of the canonical JSON (`digest`). A new defaulted field changes every digest, so
    `plan_version` rises with it. A job of another version is refused; a model file of an older one is read.
    """

    plan_version: Literal[3] = Field(default=3, description="version of this form")
    name: str = Field(
        default="ct-fedavg",
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="for people; NVFlare shows it as the job's name",
    )
    model: ModelPlan = Field(default_factory=ModelPlan, description="the network and what it draws")
    window: Window = Field(
        default="full",
        description="HU range that the model can say: full -1000..1000; lung, mediastinum, bone are narrower",
    )
    diffusion: DiffusionPlan = Field(default_factory=DiffusionPlan, description="the process")
    training: TrainingPlan = Field(default_factory=TrainingPlan, description="a round at a site")
    ema: EmaPlan = Field(default_factory=EmaPlan, description="the average that samples are drawn from")
    rounds: int = Field(default=10, ge=1, le=100_000, description="rounds of the whole run")
    clients_per_round: int | None = Field(default=None, ge=1, le=10_000, description="sites drawn a round; null: all")
    min_responses: int = Field(default=1, ge=1, le=10_000, description="good answers that a round needs")
    round_timeout_s: Float = Field(default=3600.0, ge=1.0, le=604_800.0, description="how long a round waits")
    tries_per_round: int = Field(
        default=3, ge=1, le=100, description="a round with too few answers is repeated so often"
    )
    weighting: Literal["examples", "patients", "uniform", "declared"] = Field(
        default="examples",
        description="weight of a site's update: its slices, its patients, 1, or (under DP) its declared patients",
    )
    aggregation: AggregationPlan = Field(
        default_factory=AggregationPlan, description="what the server makes of a round's updates"
    )
    update_precision: Literal["fp32", "bf16", "int8"] = Field(
        default="fp32",
        description="how an update travels: int8 has a scale a row; what rounding takes away a site adds to its next "
        "update (error feedback)",
    )
    privacy: PrivacyPlan | None = Field(
        default=None, description="patient-level differential privacy; null: off (a new site's policy refuses that)"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="reaches everything but privacy")
    init_sha256: str | None = Field(
        default=None, description="SHA-256 of the model file that training starts from (`--init`); null: from scratch"
    )

    @field_validator("init_sha256")
    @classmethod
    def _is_sha256(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(f"init_sha256 must be 64 lower-case hexadecimal digits, got {len(value)} characters")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clients_per_round is not None and self.min_responses > self.clients_per_round:
            raise ValueError(
                f"min_responses={self.min_responses} can never come from clients_per_round={self.clients_per_round} "
                "sites: lower min_responses or ask more sites"
            )
        if self.aggregation.method != "mean" and self.weighting != "uniform":
            raise ValueError(
                f"aggregation.method {self.aggregation.method!r} gives every site one voice: set weighting to 'uniform'"
            )
        if self.privacy is None:
            if self.weighting == "declared":
                raise ValueError("weighting 'declared' needs privacy.sites: use examples, patients or uniform")
        else:
            self._consistent_under_dp(self.privacy)
        return self

    def _consistent_under_dp(self, privacy: PrivacyPlan) -> None:
        if self.training.local_steps is None:
            raise ValueError(
                "under privacy a round is counted in training.local_steps: passes (local_epochs) would tell the "
                "number of slices; set training.local_steps"
            )
        if self.weighting not in ("uniform", "declared"):
            raise ValueError(
                f"weighting {self.weighting!r} would tell a count of the data: under privacy use uniform or declared"
            )
        if self.init_sha256 is None and not privacy.from_scratch:
            raise ValueError(
                "DP training from scratch gives hardly a picture (docs/privacy.md): start from a public model "
                "(`--init`), or force it with privacy.from_scratch=true"
            )
        if privacy.answer_after_s >= self.round_timeout_s:
            raise ValueError(
                f"privacy.answer_after_s={privacy.answer_after_s:g} must be less than "
                f"round_timeout_s={self.round_timeout_s:g}: an answer would always be late"
            )

    @classmethod
    def of_model_file(cls, text: str) -> Self:
        """The plan that a model was trained by, from its canonical JSON, also of version 2: there aggregation was the
        mean, with no bounds. Raises ValidationError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None  # the parser below says what is wrong
        if isinstance(data, dict) and data.get("plan_version") == 2:
            unbounded = {"max_norm_over_median": None}
            return cls.model_validate({**data, "plan_version": 3, "aggregation": unbounded})
        return cls.model_validate_json(text)

    def canonical_json(self) -> str:
        """One form for one plan: sorted keys, no spaces, every field present."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form: the identity of what is run."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


class Submission(Part):
    """One sending of a plan, outside the digest. `run_id` is carried over by resume; the nonce never is."""

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$", description="identity of the run; NVFlare's job id is another")
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$", description="new for each submission; a site takes one once")
    expires: str = Field(description="UTC time, ISO 8601, after which no site takes this submission")
    start_round: int = Field(default=0, ge=0, description="first round of this submission (0-based)")

    @field_validator("expires")
    @classmethod
    def _is_utc_time(cls, value: str) -> str:
        if datetime.fromisoformat(value).utcoffset() != timedelta(0):
            raise ValueError(f"expires must be a UTC time such as 2030-01-31T12:00:00+00:00, got {value!r}")
        return value

    @classmethod
    def new(cls, run_id: str | None = None, start_round: int = 0, valid_days: int = 30) -> Submission:
        """A fresh submission; the same `run_id` to go on with a run."""
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=valid_days)
        return cls(
            run_id=run_id or secrets.token_hex(16),
            nonce=secrets.token_hex(16),
            expires=expires.isoformat(),
            start_round=start_round,
        )

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether `now` (default: the clock) lies past `expires`."""
        return (now or datetime.now(UTC)) > datetime.fromisoformat(self.expires)
