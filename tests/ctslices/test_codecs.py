"""What a decoder process answers for one frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from ctslices.codecs import UndecodableError, decode_frame
from ctslices.decoder_process import stored_from
from ctslices.options import Options
from ctslices.reject import Reason
from ctslices.series import PlaneRef
from ctslices.sources import dicom


@pytest.fixture
def lossy() -> PlaneRef:
    path = Path(str(get_testdata_file("693_J2KI.dcm", download=False)))
    (series,), _ = dicom.read([path], path.parent, Options(min_slices=1))
    return series.planes[0]


def test_a_frame_is_what_pydicom_makes_of_it(lossy: PlaneRef) -> None:
    assert lossy.stored is not None
    values = decode_frame(lossy.path, 0, lossy.stored)
    assert np.array_equal(values, pydicom.dcmread(lossy.path).pixel_array)


def test_other_sizes_and_files_are_refused(lossy: PlaneRef) -> None:
    assert lossy.stored is not None
    for wrong, reason in (
        (replace(lossy.stored, shape=(256, 1024)), Reason.UNDECODABLE),
        (replace(lossy.stored, file_bytes=1), Reason.TRUNCATED),
        (replace(lossy.stored, transfer_syntax="1.2.840.10008.1.2.4.80"), Reason.UNDECODABLE),
    ):
        with pytest.raises(UndecodableError) as caught:
            decode_frame(lossy.path, 0, wrong)
        assert caught.value.reason is reason


def test_a_frame_that_is_not_there(lossy: PlaneRef) -> None:
    assert lossy.stored is not None
    with pytest.raises(UndecodableError):
        decode_frame(lossy.path, 7, lossy.stored)


def test_the_layout_survives_its_json_form(lossy: PlaneRef) -> None:
    import json
    from dataclasses import asdict

    for padding in (None, (-2000, -1990)):
        stored = replace(lossy.stored, padding=padding)  # type: ignore[type-var]
        assert stored_from(json.loads(json.dumps(asdict(stored)))) == stored
