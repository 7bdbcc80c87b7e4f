"""What a round costs beside training, in a real federation of 3 to 50 sites: seconds, and memory of the server.

    python benchmarks/round_overhead.py --sites 3                     # every site with its trainer child
    python benchmarks/round_overhead.py --sites 3 --sites 10 --sites 30 --light --answering 10

Server and each site are processes of their own on loopback, from strict kits over mutual TLS, with guard, gate and
byte counters; sites do not train (light_sites/sitecustomize.py). A round counts from one checkpoint to the next: all
that lies between is overhead. The model is preset small (1.0 M parameters, 4.2 MB). `--light` leaves the trainer
children away too, for more sites than the memory holds. Figures: docs/results/round-overhead.json, .md.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from training import cpu_name

from ctslices.files import write_whole
from ctslices.phantom import chest_slices
from ctslices.store import write_store
from fedscan.federation import admin, job_folder, local_run, processes, records
from fedscan.privacy.site_init import init, policy_with
from fedscan.training import tensor_file
from fedscan.training.weights import initial_weights

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "results"
FIRST = 3
"""Rounds that are not counted: libraries load, buffers grow."""
PATIENTS = 12
MIB = 2**20


def site(folder: Path, name: str) -> Path:
    """A site.json under a policy that takes a plan without privacy; made once."""
    made = folder / name / "site.json"
    if not made.exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.rmtree(folder / f"{name}-store", ignore_errors=True)
        hu, _ = chest_slices(np.random.default_rng(0), 2 * PATIENTS)
        store = write_store(folder / f"{name}-store", hu, np.arange(2 * PATIENTS) // 2, splits=["train"] * PATIENTS)
        init(folder / name, name=name, store=store, policy=policy_with(["min_patients=10", "require_dp=false"]))
    return made


class Memory(threading.Thread):
    """The server's two processes, in MiB of their own (USS), a line a second: time, parent, job."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self._run, self.lines, self.done = run, [], threading.Event()  # type: ignore[var-annotated]

    def run(self) -> None:
        while not self.done.wait(1.0):
            found = {"server_train": 0.0, "runner_process": 0.0}
            for process in processes.belonging_to(self._run):
                try:
                    kind = next((k for k in found if any(part.endswith(k) for part in process.cmdline())), None)
                    if kind:
                        found[kind] += process.memory_full_info().uss / MIB
                except psutil.Error:
                    continue
            self.lines.append((time.time(), found["server_train"], found["runner_process"]))

    def between(self, start: float, end: float) -> tuple[float, float] | None:
        """Median MiB of parent and job in that time."""
        found = [line for line in self.lines if start <= line[0] <= end and line[2]]
        return tuple(round(statistics.median(one[i] for one in found), 1) for i in (1, 2)) if found else None  # type: ignore[return-value]


def measure(
    work: Path, sites: int, answering: int, rounds: int, seconds: float, preset: str, *, light: bool
) -> dict[str, Any]:
    """One run; its rounds' seconds and the server's memory."""
    names = [f"hosp-{number:02d}" for number in range(sites)]
    files = {name: site(work / "sites", name) for name in names}
    run, job = work / "run", work / "job"
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(job, ignore_errors=True)
    settings = [f"model.preset={preset}", f"rounds={rounds}", "training.local_steps=1", "training.batch_size=1"]
    settings += [f"min_responses={answering}", f"clients_per_round={answering}", "round_timeout_s=600"]
    job_folder.new(ROOT / "jobs" / "ct_fedavg", job, settings)
    form = work / "form.safetensors"
    tensor_file.save_tensors(form, initial_weights(job_folder.read_plan(job)), {})
    here = str(Path(__file__).resolve().parent / "light_sites")
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "FEDSCAN_LIGHT": "none" if light else "child",
        "FEDSCAN_LIGHT_S": str(seconds),
        "FEDSCAN_LIGHT_FORM": str(form),
    }
    admin.START_TIMEOUT_S = 1800.0  # fifty sites load one after another on two cores
    memory = Memory(run)
    memory.start()
    local_run.run(job, files, run, listen=lambda line: print(line.text, flush=True))
    memory.done.set()
    (work / "memory.json").write_text(json.dumps(memory.lines))
    done = records.effective_rounds(run / "rounds.jsonl")
    at = [datetime.fromisoformat(record.time).timestamp() for record in done]
    cycles = [after - before - seconds for before, after in zip(at[FIRST - 1 :], at[FIRST:], strict=False)]
    third = max(1, len(cycles) // 3)
    return {
        "sites": sites,
        "preset": preset,
        "answering": answering,
        "trainer_child": not light,
        "training_s": seconds,
        "rounds_counted": len(cycles),
        "overhead_s": {
            "median": round(statistics.median(cycles), 3),
            "p90": round(sorted(cycles)[int(0.9 * len(cycles))], 3),
            "least": round(min(cycles), 3),
            "most": round(max(cycles), 3),
        },
        "first_round_s": done[0].seconds,
        "bytes_received": sum(entry.bytes_received or 0 for entry in done[-1].sites.values()),
        "server_mib": {
            "first third": memory.between(at[FIRST - 1], at[FIRST - 1 + third]),
            "last third": memory.between(at[-third - 1], at[-1]),
        },
        "load": round(os.getloadavg()[0], 1),
    }


def page(record: dict[str, Any]) -> str:
    """round-overhead.md."""
    lines = [
        "# What a round costs beside training",
        "",
        f"`python benchmarks/round_overhead.py` ({record['hardware']}, two shared cores, torch {record['torch']}). "
        "A server and sites of strict kits as processes on loopback, mutual TLS, policy, ledger, guard, gate and byte "
        f"counters; sites do not train. Seconds from one checkpoint to the next, the first {FIRST} rounds not counted. "
        "Server: memory of its own (USS), medians of the first and the last third of the run. Load: of the machine at "
        "the end; what the run itself takes is in it.",
        "",
        "| sites | answer a round | trainer child | model | rounds | median s | 90 % | least | most "
        "| MB from all sites | server parent MiB | server job MiB | load |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in record["runs"].values():
        took, memory = one["overhead_s"], one["server_mib"]
        parent, job = (f"{memory['first third'][i]:.0f}, {memory['last third'][i]:.0f}" for i in (0, 1))
        cells = [one["sites"], one["answering"], "yes" if one["trainer_child"] else "no", one["preset"]]
        cells += [one["rounds_counted"], took["median"], took["p90"], took["least"], took["most"]]
        cells += [f"{one['bytes_received'] / 1e6:.1f}", parent, job, one["load"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(
    work: Annotated[Path, typer.Option(help="Folder for sites and runs.")],
    sites: Annotated[list[int], typer.Option(help="Numbers of sites, one run each.")],
    answering: Annotated[int, typer.Option(help="Sites a round, at most.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds of a run.")] = 33,
    training_s: Annotated[float, typer.Option(help="Seconds that a site's training takes, asleep.")] = 0.0,
    preset: Annotated[str, typer.Option(help="Of the model.")] = "small",
    light: Annotated[bool, typer.Option(help="No trainer children.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = OUT,
) -> None:
    """Adds the figures of each run to round-overhead.json."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = out / "round-overhead.json"
    for number in sites:
        figures = measure(work, number, min(answering, number), rounds, training_s, preset, light=light)
        print(json.dumps(figures), flush=True)
        record = json.loads(path.read_text()) if path.exists() else {"runs": {}}
        record |= {"hardware": cpu_name(), "torch": torch.__version__}
        kind = "light" if light else "child"
        key = f"{number} sites, {figures['answering']} a round, {kind}, {preset}, {training_s:g} s, {rounds} rounds"
        record["runs"][key] = figures
        write_whole(path, [(json.dumps(record, indent=2) + "\n").encode()], mode=0o644)
        write_whole(path.with_suffix(".md"), page(record).encode(), mode=0o644)


if __name__ == "__main__":
    typer.run(main)
