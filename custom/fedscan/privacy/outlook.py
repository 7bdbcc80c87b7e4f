"""What pictures to expect of a private run: noise per patient, and the word that measurements gave it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedscan.plan import Plan
from fedscan.privacy_plan import PrivacyPlan, SiteSampling

WARN_ABOVE = 0.05
MEASURED = "seen with preset tiny, 64 x 64 pixels, 200 steps, from a public start (docs/results/dp-usefulness.md)"

_GRADES = (
    (0.005, "good", "chests with heart and carina, at once recognisable"),
    (0.01, "fair", "recognisable chests in real greys, the mediastinum more ragged"),
    (0.025, "outline only", "chests of the public start in real greys, ragged within"),
    (math.inf, "start plus grey levels", "shapes of the public start in real greys"),
)
"""Largest noise per patient, word, pictures. Looked at on this path at 0.0041, 0.0089 and 0.0227, where FD-lite112 was
186, 197 and 250 (the start alone 262, no noise 153); above that, words are those of a trial with an emulated draw."""
_NOT_WORTH = f"above {WARN_ABOVE:g}: hardly more than the public start, hardly worth the budget"


@dataclass(frozen=True)
class Outlook:
    """What to expect at one noise per patient, when training begins at a public start."""

    noise_per_patient: float
    word: str
    text: str
    next_word: str | None
    """The next better word; None for the best."""
    patients_for_next: int | None
    """Declared patients that `next_word` needs at the same noise_multiplier and sample_rate; None where unknown."""
    warns: bool
    """Whether it lies above WARN_ABOVE: more patients, a larger epsilon or fewer steps are needed."""

    def __str__(self) -> str:
        more = "" if self.patients_for_next is None else f"; {self.next_word!r} needs {self.patients_for_next} patients"
        return f"noise per patient {self.noise_per_patient:.3g}: {self.word} ({self.text}){more}"


def noise_per_patient(privacy: PrivacyPlan, site: str) -> float:
    """nu = noise_multiplier / (sample_rate x declared patients): standard deviation of the noise in a coordinate of
    a step's mean gradient at `site`, in units of max_grad_norm. Raises KeyError for a site without sampling."""
    return privacy.noise_multiplier / privacy.sites[site].expected_patients_per_step


def average_noise_per_patient(plan: Plan) -> float:
    """The same of a round's average over sites, whose noises are independent; the plan's weights.

    Where not all sites are asked, that of a typical draw. Raises ValueError for a plan without privacy.
    """
    if plan.privacy is None:
        raise ValueError("the plan has no privacy: no noise is added")
    sites = plan.privacy.sites
    weights = {site: _weight(plan, sampling) for site, sampling in sites.items()}
    noises = [weights[site] * noise_per_patient(plan.privacy, site) for site in sites]
    asked = min(plan.clients_per_round or len(sites), len(sites))
    return math.sqrt(len(sites) / asked) * math.hypot(*noises) / sum(weights.values())


def _weight(plan: Plan, sampling: SiteSampling) -> float:
    return sampling.declared_patients if plan.weighting == "declared" else 1.0


def outlook(nu: float, patients: float | None = None) -> Outlook:
    """The word for noise per patient `nu` > 0; with the declared patients behind it, how many more a better needs."""
    if not (math.isfinite(nu) and nu > 0.0):
        raise ValueError(f"noise per patient must be a number above 0, got {nu!r}")
    grade = next(i for i, (limit, _, _) in enumerate(_GRADES) if nu <= limit)
    _, word, text = _GRADES[grade]
    better = _GRADES[grade - 1] if grade else None
    return Outlook(
        noise_per_patient=nu,
        word=word,
        text=_NOT_WORTH if nu > WARN_ABOVE else text,
        next_word=better[1] if better else None,
        patients_for_next=math.ceil(patients * nu / better[0] * (1 - 1e-12)) if better and patients else None,
        warns=nu > WARN_ABOVE,
    )
