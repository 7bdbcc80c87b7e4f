"""Who a series belongs to: by what the export and the site say, never by a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctslices.labels import SamePatient, Table, TableError, read_ids, read_same_patient, read_table
from ctslices.pseudonym import SiteKey
from ctslices.reject import Reason, Rejected
from ctslices.series import Series, SourceKind

VOLUMES = (SourceKind.NIFTI, SourceKind.NRRD)


@dataclass(frozen=True, slots=True)
class Owned:
    """A series with its owner. Raw identities are for labels and joins and never reach a store."""

    series: Series
    patient: str | None
    """Identity after joining; None where no patient is known."""
    raw_patient: str | None
    """Identity before joining: what labels.csv names."""
    patient_id: str
    """Pseudonym of the patient, or of what stands for one: a volume, a block of pictures."""
    series_id: str


class Owners:
    """The rules of one run: `--patient-from`, `--same-patient`, `--exclude`."""

    def __init__(self, patient_from: str | None, same_patient: Path | None, exclude: Path | None) -> None:
        self._by_folder = patient_from == "folder"
        is_table = patient_from is not None and not self._by_folder
        if is_table and not Path(patient_from or "").is_file():
            raise TableError("--patient-from: got neither `folder` nor a file that is there")
        self._map: Table | None = (
            read_table(Path(patient_from or ""), ("key", "patient"), "--patient-from") if is_table else None
        )
        self._same: SamePatient = read_same_patient(same_patient)
        self._exclude: Table | None = read_ids(exclude) if exclude is not None else None
        self._seen: set[str] = set()

    def assign(self, found: Sequence[Series], key: SiteKey) -> tuple[list[Owned], list[Rejected]]:
        """Every series with its owner, or the reason why it has none or may not be used."""
        owned: list[Owned] = []
        rejected: list[Rejected] = []
        for series in found:
            raw = self._raw(series)
            if raw is not None:
                self._seen.add(raw)
            if raw is None and self._needs_patient(series):
                detail = (
                    "DICOM without a PatientID" if series.kind is SourceKind.DICOM else "no patient by --patient-from"
                )
                rejected += [Rejected(p, Reason.NO_PATIENT_ID, detail) for p in series.relative_paths]
            elif raw is not None and self._is_excluded(raw):
                rejected += [Rejected(p, Reason.EXCLUDED, "named by --exclude") for p in series.relative_paths]
            else:
                owned.append(self._own(series, raw, key))
        return owned, rejected

    def _raw(self, series: Series) -> str | None:
        if series.kind not in VOLUMES:
            return series.raw_patient or None
        path = PurePosixPath(series.relative_paths[0])
        if self._by_folder:
            return path.parts[0] if len(path.parts) > 1 else None
        if self._map is None:
            return None
        named = [self._map.get(str(p)) for p in (path, *path.parents)]
        return next((name for name in named if name is not None), None)

    def _needs_patient(self, series: Series) -> bool:
        if series.kind is SourceKind.DICOM:
            return True
        return series.kind in VOLUMES and (self._by_folder or self._map is not None)

    def _is_excluded(self, raw: str) -> bool:
        if self._exclude is None:
            return False
        return any([self._exclude.get(member) is not None for member in sorted(self._same.members(raw))])

    def _own(self, series: Series, raw: str | None, key: SiteKey) -> Owned:
        patient = None if raw is None else self._same.identity(raw)
        stand_in = f"without patient\0{series.kind}\0{series.raw_series}"
        return Owned(
            series=series,
            patient=patient,
            raw_patient=raw,
            patient_id=key.pseudonym("patient", stand_in if patient is None else patient),
            series_id=key.pseudonym("series", f"{series.kind}\0{series.raw_series}"),
        )

    def unmatched(self) -> dict[str, list[int]]:
        """Row numbers that matched nothing in the export, by option; options without such rows are left out."""
        rows = {
            "--patient-from": self._map.unmatched_rows() if self._map else [],
            "--same-patient": self._same.unmatched_rows(self._seen),
            "--exclude": self._exclude.unmatched_rows() if self._exclude else [],
        }
        return {option: numbers for option, numbers in rows.items() if numbers}
