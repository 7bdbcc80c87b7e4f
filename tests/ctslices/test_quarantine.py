from __future__ import annotations

import csv
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ctslices.labels import TableError
from ctslices.options import Options
from ctslices.prepare import Site, prepare
from ctslices.quarantine import released_planes


def _fine(planes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Four times as many rows and columns, with the grain of a scanner's finer pixels."""
    smooth = ndimage.zoom(planes.astype(np.float32), (1, 4, 4), order=1)
    grain = np.random.default_rng(2).normal(0, 12, smooth.shape)
    return np.clip(smooth + np.where(smooth > -1000, grain, 0), -1024, 3071).astype(np.int16)


def _with_text(fine: NDArray[np.int16]) -> NDArray[np.int16]:
    """The plane with a name burned into its upper left corner."""
    mask = Image.new("1", fine.shape[::-1])
    ImageDraw.Draw(mask).text((12, 12), "MUSTERMANN ERIKA 12.03.1961", font=ImageFont.load_default(18), fill=1)
    return np.where(np.asarray(mask), np.int16(3000), fine)


def test_a_suspect_is_shown_to_a_person_and_taken_on_the_persons_word(
    tmp_path: Path, real_chest: NDArray[np.int16], write_series: Callable[..., list[Path]]
) -> None:
    hu = _fine(real_chest[12:20])
    hu[3] = _with_text(hu[3])
    write_series(tmp_path / "export" / "a", "PAT", hu, spacing_mm=3.046 / 4)
    options, store, folder = Options(every_mm=None), tmp_path / "store", tmp_path / "store.quarantine"
    first = prepare(tmp_path / "export", store, options, Site(workers=1))
    assert first.slices + first.quarantined == 8
    assert first.rejected == {"burned-in-suspected": first.quarantined}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    rows = {row["path"]: row for row in csv.DictReader((folder / "list.csv").open())}
    assert len(rows) == first.quarantined < 8
    row = rows["a/0003.dcm"]
    assert (row["frame"], row["release"]) == ("0", "")
    with Image.open(folder / row["picture"]) as image:
        assert image.size == (512, 512)
        assert np.asarray(image)[:60, :300].max() == 255
    assert prepare(tmp_path / "export", store, options, Site(workers=1)).unchanged

    text = (folder / "list.csv").read_text()
    (folder / "list.csv").write_text(text.replace("0003.dcm,0,", "0003.dcm,0,yes"))
    second = prepare(tmp_path / "export", store, options, Site(workers=1))
    assert (second.slices, second.quarantined) == (first.slices + 1, first.quarantined - 1)
    rows = {row["path"]: row for row in csv.DictReader((folder / "list.csv").open())}
    assert rows["a/0003.dcm"]["release"] == "yes"
    assert prepare(tmp_path / "export", store, options, Site(workers=1)).unchanged


def test_a_list_that_was_damaged_is_refused_by_row(tmp_path: Path) -> None:
    assert released_planes(tmp_path) == frozenset()
    (tmp_path / "list.csv").write_text("path,frame\n")
    with pytest.raises(TableError, match="must name the columns picture,path,frame,release: picture, release missing"):
        released_planes(tmp_path)
    (tmp_path / "list.csv").write_text("picture,path,frame,release\n,SECRET,one,yes\n")
    with pytest.raises(TableError, match="row 2 must have a whole number under frame") as caught:
        released_planes(tmp_path)
    assert "SECRET" not in str(caught.value)
