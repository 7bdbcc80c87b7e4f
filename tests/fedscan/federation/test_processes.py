"""Stopping a run ends its own processes, and nobody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedscan.federation import kit_files, processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
READ_BY_NVFLARE = """
from nvflare.apis.fl_constant import ConfigVarName as Known
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.utils.app_config_utils import get_int_var, get_positive_float_var
fetched = TensorDecomposer()
print(CommConfigurator().get_streaming_max_blob_size())
print(get_int_var(fetched._config_var_name(Known.DOWNLOAD_CHUNK_SIZE), 0))
print(get_positive_float_var(fetched._config_var_name(Known.STREAMING_PER_REQUEST_TIMEOUT), 600.0))
"""


def test_only_nvflares_processes_of_the_run_are_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "run2").mkdir()
    ours = subprocess.Popen([*SLEEP, "nvflare.private.fed.app.client.worker_process", "-m", f"{run}/kit"])
    others = [
        subprocess.Popen([*SLEEP, f"{run}/rounds.jsonl"]),
        subprocess.Popen([*SLEEP, f"fedscan job run job --out {run}; fedscan generate {run}/model.safetensors"]),
        subprocess.Popen([*SLEEP, "nvflare.private.fed.app.client.worker_process", "-m", f"{tmp_path}/run2/kit"]),
    ]
    try:
        assert processes.stop_all(run) == 1
        assert ours.poll() is not None
        assert [other.poll() for other in others] == [None, None, None]
    finally:
        for process in (ours, *others):
            process.kill()
            process.wait()


def test_processes_have_what_a_kits_start_script_sets(tmp_path: Path) -> None:
    ours = processes.environment(tmp_path)
    lines = [line.removeprefix("export ") for line in kit_files.STRICT_LINES.splitlines() if line.startswith("export ")]
    assert len(lines) > 4
    for name, value in (line.split("=") for line in lines):
        assert ours[name] == value


def test_nvflare_goes_by_these_names(tmp_path: Path) -> None:
    """It has 4 GiB, 2 MiB and 600 s where it does not know a name."""
    command = [sys.executable, "-c", READ_BY_NVFLARE]
    done = subprocess.run(command, env=processes.environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(64 * 2**20), str(8 * 2**20), "60.0"]
