from __future__ import annotations

from pathlib import Path

import pytest

from ctslices.labels import TableError, label_of, read_ids, read_labels, read_same_patient, read_table


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_file_counts_more_than_series_and_series_more_than_patient(tmp_path: Path) -> None:
    table = read_labels(_write(tmp_path / "l.csv", "key,label\nP1,a\n1.2.3,b\nx/1.dcm,c\nghost,d\n"))
    assert label_of(table, "P1", "1.2.3", "x/1.dcm") == "c"
    assert label_of(table, "P1", "1.2.3", "x/2.dcm") == "b"
    assert label_of(table, "P1", "1.2.4", "x/3.dcm") == "a"
    assert label_of(table, None, "1.2.4", "x/3.dcm") is None
    assert table.unmatched_rows() == [5]


def test_excel_files_with_bom_spaces_and_more_columns_are_read(tmp_path: Path) -> None:
    table = read_labels(_write(tmp_path / "l.csv", "\ufeffnote,key, label\nn, P1 , a \n"))
    assert table.get("P1") == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\nSECRET,a\n", "must name the columns key,label: key missing"),
        ("key,label\nSECRET,\n", "row 2 lacks a label"),
        ("key,label\nSECRET,a\nSECRET,b\n", "rows 2 and 3 give one key two different values of label"),
    ],
)
def test_what_is_wrong_is_said_by_row_number_without_the_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        read_labels(_write(tmp_path / "l.csv", text))
    assert "SECRET" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_absent_and_undecodable_tables_are_named_by_their_option(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="--labels: the file is not there"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("key,label\nJosé,a\n".encode("latin-1"))
    with pytest.raises(TableError, match="not UTF-8"):
        read_table(tmp_path / "latin.csv", ("key", "label"), "--labels")


def test_identities_are_joined_in_chains(tmp_path: Path) -> None:
    same = read_same_patient(_write(tmp_path / "m.csv", "patient,same_as\nc,b\nb,a\nx,y\nq,r\n"))
    assert {same.identity(p) for p in "abc"} == {"a"}
    assert {same.identity(p) for p in "xy"} == {"x"}
    assert same.identity("z") == "z"
    assert same.members("b") == {"a", "b", "c"}
    assert same.unmatched_rows(["c", "y"]) == [3, 5]


def test_ids_are_one_a_line(tmp_path: Path) -> None:
    ids = read_ids(_write(tmp_path / "ids.txt", "P1\r\n\n  P2  \n"))
    assert ids.get("P2") is not None
    assert ids.unmatched_rows() == [1]
