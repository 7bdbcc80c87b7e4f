"""What a server remembers of sites' ledgers."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedscan.federation.messages import LedgerHead
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
