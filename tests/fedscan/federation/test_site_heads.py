"""What a server remembers of sites' ledgers."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedscan.federation.messages import LedgerHead
from fedscan.federation.places import ServerPlaces
from fedscan.federation.site_heads import FILE, HeadsError, SiteHeads


def head(count: int) -> LedgerHead:
    return LedgerHead(count=count, mac=f"{count:064x}")


def test_a_head_is_on_disk_when_it_is_noted_and_never_goes_back(tmp_path: Path) -> None:
    heads = SiteHeads(tmp_path / FILE)
    assert heads.of("a") is None
    heads.note("a", head(3))
    heads.note("b", head(7))
    heads.note("a", head(2))
    heads.note("a", LedgerHead(count=3, mac="f" * 64))
    again = SiteHeads(tmp_path / FILE)
    assert (again.of("a"), again.of("b")) == (head(3), head(7))
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sites": {"a": {"count": -1, "mac": ""}}}', '{"sites": {}, "x": 1}'])
def test_a_damaged_file_is_no_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(HeadsError, match="cannot be read"):
        SiteHeads(tmp_path / FILE)


def test_a_new_run_knows_what_sites_showed_in_others(tmp_path: Path) -> None:
    """A site that was put back, ledger and anchor together, between two runs would else begin again unnoticed."""
    own = ServerPlaces(run_folder=str(tmp_path / "runs [1]" / "{run_id}" / "out"), shelf=tmp_path)
    first, second, third = (own.run(name * 32) / FILE for name in "abc")
    for path in (first, second, third):
        path.parent.mkdir(parents=True)
    SiteHeads(first).note("a", head(5))
    SiteHeads(second).note("a", head(3))
    SiteHeads(second).note("b", head(4))
    assert set(own.of_all_runs(FILE)) == {first, second}
    heads = SiteHeads(third, own.of_all_runs(FILE))
    assert (heads.of("a"), heads.of("b"), heads.of("c")) == (head(5), head(4), None)
    heads.note("a", head(6))
    assert SiteHeads(third).of("a") == head(6)
    assert SiteHeads(first).of("a") == head(5)
    second.write_text("")
    with pytest.raises(HeadsError):
        SiteHeads(third, own.of_all_runs(FILE))
    assert ServerPlaces(run_folder=str(tmp_path), shelf=tmp_path).of_all_runs(FILE) == ()
