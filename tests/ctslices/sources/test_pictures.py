"""ctslices.sources.pictures: class folders, blocks of running numbers, grey values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctslices.options import Options
from ctslices.reject import Reason, Rejected
from ctslices.sources import pictures, scan


def drawn(path: Path, mode: str = "L", value: int = 100, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(path)
    return path


def read(folder: Path) -> tuple[list[pictures.Series], list[Rejected]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return pictures.read([(path, path.relative_to(folder).as_posix()) for path in files])


def test_blocks_of_25_running_numbers_for_each_class(tmp_path: Path) -> None:
    for number in (1, 2, 24, 25, 26, 50, 51):
        drawn(tmp_path / "COVID" / f"Covid ({number}).png")
        drawn(tmp_path / "non-COVID" / f"Non-Covid ({number}).png")
    series, rejected = read(tmp_path)
    assert not rejected
    assert [[plane.position_mm for plane in one.planes] for one in series] == [[1, 2, 24, 25], [26, 50], [51]] * 2
    assert len({one.raw_series for one in series}) == 6
    assert {one.raw_patient for one in series} == {None}
    assert {one.geometry for one in series} == {None}
    assert [pictures.label_of(one.relative_paths[0]) for one in series] == ["COVID"] * 3 + ["non-COVID"] * 3


def test_adding_pictures_moves_none_to_another_block(tmp_path: Path) -> None:
    for number in (3, 30):
        drawn(tmp_path / "a" / f"{number}.png")
    before = {one.raw_series for one in read(tmp_path)[0]}
    drawn(tmp_path / "a" / "31.png")
    drawn(tmp_path / "b" / "1.png")
    assert before < {one.raw_series for one in read(tmp_path)[0]}


def test_names_without_numbers_are_counted_in_their_order(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        drawn(tmp_path / f"{name}.png")
    series, _ = read(tmp_path)
    assert [(plane.relative_path, plane.position_mm) for plane in series[0].planes] == [
        ("a.png", 1),
        ("b.png", 2),
        ("c.png", 3),
    ]
    assert pictures.label_of("a.png") == ""


def test_one_number_twice_counts_by_name(tmp_path: Path) -> None:
    drawn(tmp_path / "x7.png")
    drawn(tmp_path / "x7.jpg")
    series, _ = read(tmp_path)
    assert [plane.position_mm for plane in series[0].planes] == [1, 2]


@pytest.mark.parametrize(("mode", "name"), [("L", "1.png"), ("RGB", "1.png"), ("RGBA", "1.png"), ("RGB", "1.jpg")])
def test_every_mode_is_grey(tmp_path: Path, mode: str, name: str) -> None:
    drawn(tmp_path / name, mode)
    (series,), _ = read(tmp_path)
    (plane,) = pictures.read_planes(series, [0])
    assert isinstance(plane, np.ndarray)
    assert plane.shape == (8, 12)
    assert np.abs(plane - 100).max() <= 1


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 25700, np.uint16)).save(tmp_path / "1.png")
    (series,), _ = read(tmp_path)
    (plane,) = pictures.read_planes(series, [0])
    assert np.allclose(plane, 100)  # type: ignore[arg-type]


def test_damaged_pictures_cost_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in (1, 2, 3):
        Image.fromarray(rng.integers(0, 256, (60, 60), np.uint8)).save(tmp_path / f"{number}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_bytes(whole[:12])
    (series,), rejected = read(tmp_path)
    assert [(one.path, one.reason) for one in rejected] == [("3.png", Reason.UNREADABLE)]
    good, bad = pictures.read_planes(series, [0, 1])
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, Rejected)
    assert (bad.path, bad.reason) == ("2.png", Reason.UNDECODABLE)


def test_the_papers_set(fedscan_data: Path) -> None:
    series, rejected = scan.find(fedscan_data / "sars_cov_2_ct", Options())
    assert [one.path for one in rejected] == ["index.csv"]
    labels = Counter(pictures.label_of(path) for one in series for path in one.relative_paths)
    assert labels == {"COVID": 1252, "non-COVID": 1229}
    assert all(len(one.planes) <= 25 for one in series)
    assert len(series) == 51 + 50
