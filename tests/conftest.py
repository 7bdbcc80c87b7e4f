"""Fixtures that every room of the tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def fedscan_data() -> Path:
    """The folder of shared real CT: FEDSCAN_DATA, default ../shared/data beside the checkout."""
    place = Path(os.environ.get("FEDSCAN_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (place / "ct_hu").is_dir():
        pytest.skip("no shared CT data: set FEDSCAN_DATA to its folder")
    return place
