"""Made-up people for phantom exports. Names, numbers and dates are drawn; any likeness to a person is chance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from pydicom.uid import UID, generate_uid

_FAMILY = (
    "Abendroth",
    "Brightwater",
    "Castellano",
    "Dvorakova",
    "Eriksen",
    "Fontaine",
    "Grimaldi",
    "Haverkamp",
    "Iversen",
    "Jankowski",
    "Kowalczyk",
    "Lindqvist",
    "Moreau",
    "Nakamura",
    "Okonkwo",
    "Petrov",
    "Quintero",
    "Rasmussen",
    "Schumacher",
    "Tanaka",
    "Vandermeer",
    "Whitcombe",
    "Xanthos",
    "Yilmaz",
)
_FEMALE = (
    "Agathe",
    "Beatrix",
    "Clara",
    "Dorothea",
    "Elif",
    "Frieda",
    "Greta",
    "Hilde",
    "Ines",
    "Johanna",
)
_MALE = (
    "Anton",
    "Bruno",
    "Casper",
    "Dietrich",
    "Emil",
    "Felix",
    "Gustav",
    "Hugo",
    "Ivan",
    "Jonas",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """One made-up person and the person's examination."""

    patient_id: str
    family: str
    given: str
    birth: date
    study: date
    time: str
    accession: str
    study_uid: UID
    frame_uid: UID
    entropy: tuple[str, ...]

    @property
    def name(self) -> str:
        """DICOM's person name."""
        return f"{self.family}^{self.given}"

    def uid(self, *parts: object) -> UID:
        """A UID of this examination, the same in each run."""
        return generate_uid(entropy_srcs=[*self.entropy, *map(str, parts)])


def draw_identity(rng: np.random.Generator, hospital: str, number: int, female: bool, age_years: int) -> Identity:
    """Draw a person; `number` makes the patient's ID unique within the hospital."""
    study = date(2019, 1, 1) + timedelta(days=int(rng.integers(0, 1800)))
    entropy = (hospital, str(number), str(rng.integers(2**62)))
    given = _FEMALE if female else _MALE
    return Identity(
        patient_id=f"{hospital[:2].upper()}{int(rng.integers(10, 99))}{number:05d}",
        family=_FAMILY[int(rng.integers(len(_FAMILY)))],
        given=given[int(rng.integers(len(given)))],
        birth=study - timedelta(days=365 * age_years + int(rng.integers(365))),
        study=study,
        time=f"{int(rng.integers(7, 20)):02d}{int(rng.integers(60)):02d}{int(rng.integers(60)):02d}",
        accession=f"A{int(rng.integers(10**8)):08d}",
        study_uid=generate_uid(entropy_srcs=[*entropy, "study"]),
        frame_uid=generate_uid(entropy_srcs=[*entropy, "frame"]),
        entropy=entropy,
    )
