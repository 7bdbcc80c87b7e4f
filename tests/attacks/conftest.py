"""A ledger that attacks start from."""

from __future__ import annotations

import ledger_bench
import pytest


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> ledger_bench.Bench:
    return ledger_bench.Bench(tmp_path_factory.mktemp("ledger"))


@pytest.fixture(scope="module")
def kept(bench: ledger_bench.Bench) -> ledger_bench.Kept:
    return ledger_bench.keep(bench)
