from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from ctslices.labels import read_ids, read_labels
from ctslices.one_form import identity_of
from ctslices.options import Options
from ctslices.reject import Reason
from ctslices.sources import dicom


@pytest.mark.parametrize("blank", ["", " ", "\t\t", "\\", "\\ \\", "\xa0", "\x00", "\u200b"])
def test_nothing_to_see_is_no_patient(blank: str) -> None:
    assert identity_of(blank) == ""


def test_forms_that_look_the_same_are_one() -> None:
    assert identity_of("Jo\u0308rg") == identity_of("J\xf6rg\r\n") == "J\xf6rg"
    assert identity_of("A-1\\B") == "A-1\\B"


def test_one_patient_in_two_forms_is_one_and_is_found_by_the_tables(
    tmp_path: Path, real_chest: NDArray[np.int16], write_series: Callable[..., list[Path]]
) -> None:
    def in_unicode(ds: FileDataset) -> None:
        ds.SpecificCharacterSet = "ISO_IR 192"

    files = write_series(tmp_path / "a", "Jo\u0308rg", real_chest[10:16], change=in_unicode)
    files += write_series(tmp_path / "b", "J\xf6rg", real_chest[16:22], change=in_unicode)
    files += write_series(tmp_path / "c", "\t", real_chest[16:22])
    series, rejected = dicom.read(files, tmp_path, Options())
    assert {one.raw_patient for one in series} == {"J\xf6rg"}
    assert {one.reason for one in rejected} == {Reason.NO_PATIENT_ID}
    (tmp_path / "ids.txt").write_text("Jo\u0308rg\n", encoding="utf-8")
    (tmp_path / "labels.csv").write_text("key,label\nJo\u0308rg,x\n", encoding="utf-8")
    for table in (read_ids(tmp_path / "ids.txt"), read_labels(tmp_path / "labels.csv")):
        assert table.get("J\xf6rg") is not None
        assert table.unmatched_rows() == []
