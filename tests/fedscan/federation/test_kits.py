"""Provisioning into a folder that is named from where the command was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedscan.federation import kits
from fedscan.federation.places import ServerPlaces, SitePlaces


def test_a_relative_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sites = {"hosp-a": SitePlaces(site_file=tmp_path / "site.json")}
    server = ServerPlaces(run_folder=str(tmp_path), shelf=tmp_path)
    made = kits.provision(Path("runs/federation"), sites, server)
    assert (made.kit("hosp-a") / "startup" / "client.crt").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
