"""The classes that a job may name: no argument of a job reaches them, and nothing else under their prefix is built.

NVFlare's allow-list goes by the path's beginning, and takes any name that a module holds, imported ones as well.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

from fedscan.federation import job_folder, job_form, kit_files
from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.job.executor import DiffusionExecutor
from fedscan.federation.job.persistor import CheckpointPersistor

EXECUTOR = "fedscan.federation.job.executor.DiffusionExecutor"
HOSTILE: list[dict[str, Any]] = [
    {"store": "/etc"},
    {"site_file": "/etc/passwd"},
    {"state": "../../x"},
    {"policy": None},
    {"model": {"path": "os.system", "args": {"command": "id"}}},
    {"task_name": "export"},
    {"num_rounds": 10**9},
    {"persistor_id": "x"},
    {"filter_id": "x"},
    {"__class__": "x"},
    {"_job": {}},
    {"_config": "/etc"},
    {"unsafe": False},
]


def reachable() -> Iterator[str]:
    """Whatever NVFlare could call under the allowed prefix."""
    for name in ("controller", "executor", "persistor"):
        module = importlib.import_module(f"fedscan.federation.job.{name}")
        yield from (
            f"{module.__name__}.{attribute}" for attribute in dir(module) if callable(getattr(module, attribute))
        )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    job = tmp_path_factory.mktemp("job") / "job"
    job_folder.new(repository / "jobs" / "ct_fedavg", job, ["model.preset=tiny", "rounds=1"], ["hosp-a"])
    found: dict[str, Any] = json.loads((job / job_folder.CLIENT_PATH).read_text())
    return found


def findings(config: dict[str, Any], path: str, arguments: dict[str, Any]) -> list[Any]:
    changed = copy.deepcopy(config)
    changed["executors"][0]["executor"] = {"path": path, "args": arguments}
    return list(job_form.config_findings(changed, job_folder.CLIENT_PATH))


@pytest.mark.parametrize("arguments", HOSTILE, ids=lambda a: next(iter(a)))
@pytest.mark.parametrize("kind", [DiffusionFedAvg, DiffusionExecutor, CheckpointPersistor])
def test_no_class_of_ours_takes_an_argument_from_a_job(kind: type, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        kind(**arguments)


@pytest.mark.parametrize("arguments", HOSTILE, ids=lambda a: next(iter(a)))
def test_a_site_refuses_a_job_that_gives_one(config: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert findings(config, EXECUTOR, {}) == []
    assert findings(config, EXECUTOR, arguments)


def test_a_site_builds_one_name_under_the_prefix_and_no_other(config: dict[str, Any]) -> None:
    names = set(reachable())
    assert all(name.startswith("fedscan.federation.job.") for name in names)
    assert len(names) > 20, "modules hold what they import"
    listed = [*kit_files.SITE_CLASSES, *kit_files.SERVER_CLASSES]
    matches = ComponentPathAuthorizer._path_matches_prefix
    assert {name for name in names if any(matches(name, one) for one in listed)} == set(listed)
    assert [name for name in names if any(matches(name, one) for one in kit_files.SITE_CLASSES)] == [EXECUTOR]
    assert [name for name in names if not findings(config, name, {})] == [EXECUTOR]
