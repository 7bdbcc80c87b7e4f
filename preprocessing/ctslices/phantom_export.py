"""A hospital's export of phantom patients: folders of real DICOM series, with the mess that exports have.

Everything follows from the seed. A patient's folder appears whole or not at all, so a run that was killed is gone on
with by calling again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctslices import phantom_mess as mess
from ctslices.phantom import HospitalProfile, Patient, PhantomLabel, draw_patient, render, slice_heights
from ctslices.phantom_dicom import SeriesLabel, instances, series_template, stored, write
from ctslices.phantom_identity import Identity, draw_identity

Progress = Callable[[int, int], None]
"""Called with (patients written, patients in all)."""


@dataclass(frozen=True, slots=True)
class HospitalExport:
    """What was written: the folder, its table of labels, chest patients and their label."""

    folder: Path
    labels_csv: Path
    labels: dict[str, PhantomLabel]


def write_hospital_export(
    folder: Path, profile: HospitalProfile, patients: int, seed: int, progress: Progress | None = None
) -> HospitalExport:
    """Write `patients` chest patients of `profile` into `folder`, and labels.csv (key,label) with their PatientIDs.

    With three patients and more there are among them: localizers, a truncated slice, a duplicate instance, a dose
    report, a page of text, a kernel twin, a head series (of a person of its own), and files that are no DICOM.

    Raises ValueError when the folder holds an export with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, profile, patients, seed)
    labels: dict[str, PhantomLabel] = {}
    for number in range(patients):
        rng = np.random.default_rng([seed, number, 1])
        patient = draw_patient(rng, profile)
        who = draw_identity(rng, profile.name, number, patient.female, patient.age_years)
        labels[who.patient_id] = patient.label
        _whole(folder / _patient_folder(profile, who, number), _PatientFiles(profile, patient, who, number, rng).write)
        if progress is not None:
            progress(number + 1, patients)
    if patients >= 3:
        _write_head_patient(folder, profile, patients, seed)
        _replace(folder / "DISC.txt", "Please return this disc to the radiology desk.\n")
    _replace(folder / "labels.csv", _labels_csv(labels))
    return HospitalExport(folder, folder / "labels.csv", labels)


class _PatientFiles:
    """The files of one patient, written into a folder that is renamed afterwards."""

    def __init__(
        self, profile: HospitalProfile, patient: Patient, who: Identity, number: int, rng: np.random.Generator
    ):
        self.profile, self.patient, self.who, self.number, self.rng = profile, patient, who, number, rng

    def write(self, folder: Path) -> None:
        """Write the chest series and what this patient's number brings along."""
        profile, patient, who = self.profile, self.patient, self.who
        heights = slice_heights(patient, profile.step_mm)
        hu = render(self.rng, patient, profile, heights)
        table_mm = round(float(self.rng.uniform(-900, -300)), 1)
        files = self._series(folder, SeriesLabel(2, "Thorax routine", profile.kernel), hu, heights + table_mm)
        if self.number % 4 == 0:
            mess.write_localizer(folder / _name(profile, who, 1, 0), profile, patient, who, hu)
        if self.number == 0:
            sharp = 1.0 - profile.sharpness
            twin = render(self.rng, patient, profile, heights, sharpness=sharp)
            kernel = "LUNG" if sharp > 0.5 else "B31f"
            self._series(folder, SeriesLabel(3, "Thorax second kernel", kernel), twin, heights + table_mm)
        if self.number == 1:
            mess.truncate(files[len(files) // 2])
            mess.write_dose_report(folder / _name(profile, who, 999, 1), profile, patient, who)
        if self.number == 2:
            mess.duplicate(files[3])
            mess.write_text_page(folder / _name(profile, who, 501, 1), profile, patient, who)

    def _series(
        self, folder: Path, label: SeriesLabel, hu: NDArray[np.int16], heights_mm: NDArray[np.float64]
    ) -> list[Path]:
        template = series_template(self.profile, self.patient, self.who, label)
        files = []
        for i, ds in enumerate(instances(template, self.who, stored(hu, self.profile), heights_mm)):
            # Some scanners number from the head: a file's name says nothing about its place.
            shown = len(hu) - i if self.profile.compression == "rle" else i + 1
            ds.InstanceNumber = shown
            files.append(folder / _name(self.profile, self.who, label.number, shown))
            write(ds, files[-1])
        return files


def _write_head_patient(folder: Path, profile: HospitalProfile, number: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number, 2])
    patient = draw_patient(rng, profile, diseased=False)
    who = draw_identity(rng, profile.name, number, patient.female, patient.age_years)
    place = folder / _patient_folder(profile, who, number)
    _whole(place, lambda temporary: mess.write_head(temporary, profile, patient, who, rng))


def _patient_folder(profile: HospitalProfile, who: Identity, number: int) -> Path:
    """Where each maker's export puts a patient."""
    if profile.manufacturer.startswith("GE"):
        return Path("DICOM") / f"PA{number:06d}"
    if profile.manufacturer.startswith("SIEMENS"):
        return Path(f"{who.family}_{who.given}_{who.patient_id}".upper())
    return Path(f"{who.study:%Y-%m}") / who.patient_id


def _name(profile: HospitalProfile, who: Identity, series: int, instance: int) -> Path:
    if profile.manufacturer.startswith("GE"):
        return Path("ST000000") / f"SE{series:06d}" / f"IM{instance:06d}"
    if profile.manufacturer.startswith("SIEMENS"):
        moment = f"{who.study:%Y%m%d}_{who.time}"
        return Path(f"THORAX_{moment}") / f"{who.family.upper()}.CT.{series:04d}.{instance:04d}.{moment}.IMA"
    return Path(f"series-{series:03d}") / f"IMG-{series:04d}-{instance:05d}.dcm"


def _claim(folder: Path, profile: HospitalProfile, patients: int, seed: int) -> None:
    """Note beside the folder what goes into it, so that two exports are never mixed."""
    note = folder.parent / f".{folder.name}.phantoms.json"
    wanted = json.dumps({"profile": asdict(profile), "patients": patients, "seed": seed}, sort_keys=True)
    if note.exists() and note.read_text() != wanted:
        raise ValueError(
            f"{folder.name} holds phantoms of another profile, number or seed: choose an empty folder or delete it"
        )
    _replace(note, wanted)


def _whole(place: Path, write_into: Callable[[Path], object]) -> None:
    """Fill a folder that appears under its name once it is complete; one that is there already stays."""
    if place.exists():
        return
    temporary = place.with_name(f".{place.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_into(temporary)
    os.replace(temporary, place)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _labels_csv(labels: dict[str, PhantomLabel]) -> str:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["key", "label"])
    rows.writerows(sorted(labels.items()))
    return table.getvalue()
