"""The command itself, kits as `nvflare provision` makes them with our builder, and a phantom store for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.cli.main import app
from fedscan.federation import kits

Command = Callable[..., tuple[int, str]]


def provision(folder: Path, name: str = kits.PROJECT, strict: bool = True) -> Path:
    """Provisions a server, two sites and a lead; returns the folder of their kits."""
    folder.mkdir(parents=True)
    description = kits.project(("hosp-a", "hosp-b"), kits.free_ports(2)) | {"name": name}
    if not strict:
        description["builders"] = [one for one in description["builders"] if "fedscan" not in one["path"]]
    (folder / "project.yml").write_text(yaml.safe_dump(description, sort_keys=False))
    kits.run_provisioner(folder)
    return folder / name / "prod_00"


@pytest.fixture
def command() -> Command:
    """Runs `fedscan` with these arguments: exit status and all that it said."""

    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture(scope="session")
def make_kits() -> Callable[..., Path]:
    """`provision` itself, for tests of other federations."""
    return provision


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a federation, strict, not installed: copy one before changing it."""
    return provision(tmp_path_factory.mktemp("federation") / "ws")


@pytest.fixture(scope="session")
def provisioned_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a federation of the same name, and the same sites' names, under another root."""
    return provision(tmp_path_factory.mktemp("federation") / "ws")


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve phantom patients of two slices each, all trained on."""
    hu, _ = chest_slices(np.random.default_rng(1), 24)
    folder = tmp_path_factory.mktemp("stores")
    return write_store(folder / "store", hu, np.arange(24) // 2, splits=["train"] * 12)


@pytest.fixture
def store(phantom_store: Path, tmp_path: Path) -> Path:
    """A copy of it, which the test may change."""
    shutil.copytree(phantom_store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def kit(provisioned: Path, tmp_path: Path) -> Path:
    """The kit of hosp-a as it was sent: not installed."""
    shutil.copytree(provisioned / "hosp-a", tmp_path / "kit", symlinks=True)
    return tmp_path / "kit"


@pytest.fixture
def put_kit(tmp_path: Path) -> Callable[[Path], Path]:
    """Lays another kit in the place of `kit`, as an operator who unpacks it there does."""

    def put(source: Path) -> Path:
        shutil.rmtree(tmp_path / "kit", ignore_errors=True)
        shutil.copytree(source, tmp_path / "kit", symlinks=True)
        return tmp_path / "kit"

    return put


@pytest.fixture
def installed(kit: Path, store: Path) -> Path:
    """The kit of hosp-a, installed over a store of twelve patients."""
    from fedscan.federation.site_install import Choices, install
    from fedscan.privacy.site_init import policy_with

    install(kit, Choices(store=store, policy=policy_with(["min_patients=10", "max_delta=1e-3"])))
    return kit
