from __future__ import annotations

from pathlib import Path

import pytest

from ctslices.identity import Owners
from ctslices.pseudonym import SiteKey
from ctslices.reject import Reason
from ctslices.series import Series, SourceKind

KEY = SiteKey(bytes(32))


def _series(path: str, kind: SourceKind = SourceKind.NIFTI, patient: str | None = None) -> Series:
    return Series(kind, patient, f"uid of {path}", (path,), planes=(), geometry=None)


def _table(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_folder_is_a_patient_and_a_file_without_one_is_refused() -> None:
    found = [_series("p1/a.nii"), _series("p1/deep/b.nii"), _series("p2/a.nii"), _series("loose.nii")]
    owned, rejected = Owners("folder", None, None).assign(found, KEY)
    assert [o.patient for o in owned] == ["p1", "p1", "p2"]
    assert owned[0].patient_id == owned[1].patient_id != owned[2].patient_id
    assert len({o.series_id for o in owned}) == 3
    assert [(r.path, r.reason) for r in rejected] == [("loose.nii", Reason.NO_PATIENT_ID)]


def test_a_map_names_files_or_folders(tmp_path: Path) -> None:
    table = _table(tmp_path, "map.csv", "key,patient\nx/a.nii,P1\ny,P2\nghost,P3\n")
    owners = Owners(str(table), None, None)
    owned, rejected = owners.assign([_series("x/a.nii"), _series("y/z/b.nii"), _series("x/c.nii")], KEY)
    assert [o.patient for o in owned] == ["P1", "P2"]
    assert [r.path for r in rejected] == ["x/c.nii"]
    assert owners.unmatched() == {"--patient-from": [4]}


def test_without_a_word_nobody_is_guessed() -> None:
    owned, rejected = Owners(None, None, None).assign([_series("p1/a.nii"), _series("p1/b.nii")], KEY)
    assert [o.patient for o in owned] == [None, None]
    assert owned[0].patient_id != owned[1].patient_id
    assert not rejected


def test_dicom_without_a_patient_id_is_refused_whatever_the_folder() -> None:
    owned, rejected = Owners("folder", None, None).assign([_series("p1/a.dcm", SourceKind.DICOM)], KEY)
    assert not owned
    assert [r.reason for r in rejected] == [Reason.NO_PATIENT_ID]


def test_joined_identities_are_one_patient_and_are_excluded_together(tmp_path: Path) -> None:
    same = _table(tmp_path, "same.csv", "patient,same_as\nB,A\nGHOST,OTHER\n")
    found = [_series(f"{p}.dcm", SourceKind.DICOM, p) for p in ("A", "B", "C")]
    owners = Owners(None, same, None)
    owned, _ = owners.assign(found, KEY)
    assert owned[0].patient_id == owned[1].patient_id == KEY.pseudonym("patient", "A")
    assert [o.raw_patient for o in owned] == ["A", "B", "C"]
    assert owners.unmatched() == {"--same-patient": [3]}

    owners = Owners(None, same, _table(tmp_path, "ids.txt", "A\nZ\n"))
    owned, rejected = owners.assign(found, KEY)
    assert [o.patient for o in owned] == ["C"]
    assert [(r.path, r.reason) for r in rejected] == [("A.dcm", Reason.EXCLUDED), ("B.dcm", Reason.EXCLUDED)]
    assert owners.unmatched()["--exclude"] == [2]


def test_a_missing_table_is_named_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--exclude: the file is not there"):
        Owners(None, None, tmp_path / "none.txt")
    with pytest.raises(ValueError, match="--patient-from: got neither `folder` nor a file"):
        Owners("foldr", None, None)
