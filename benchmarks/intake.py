"""How fast the intake is: against MONAI's transforms, against reading alone, and over cores.

    python benchmarks/intake.py [--patients 100] [--repeats 3] [--out docs/results]

All ways read the same real series (one chest of Lung-PET-CT-Dx, 30 slices of 512 x 512, CC BY 4.0, copied as so many
patients) in one run, in turn, and the medians count. Needs FEDSCAN_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import JPEG2000Lossless, generate_uid

from ctslices.options import Options
from ctslices.prepare import Site, prepare

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("FEDSCAN_DATA", REPOSITORY.parent / "shared" / "data"))
Rates = dict[str, list[float]]
OPTIONS = Options(every_mm=None, region="any")
"""Every slice, as the other ways take every slice; the screen for burned-in text is on."""


def write_export(folder: Path, patients: int, compressed: bool) -> None:
    """The chest series as `patients` patients, with UIDs of their own; JPEG 2000 lossless where `compressed`."""
    with zipfile.ZipFile(DATA / "dicom" / "chest_8mm_b40f.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".dcm"))
        sets = [pydicom.dcmread(archive.open(name)) for name in names]
    for ds in sets:
        if compressed:
            ds.compress(JPEG2000Lossless)
    for patient in range(patients):
        place = folder / f"patient{patient:03d}"
        place.mkdir(parents=True)
        for number, ds in enumerate(sets):
            ds.PatientID = f"BENCH-{patient:03d}"
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
                setattr(ds, keyword, generate_uid(entropy_srcs=[keyword, str(patient)]))
            ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(patient), str(number)])
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.save_as(place / f"{number:03d}.dcm")


def ours(export: Path, scratch: Path, workers: int) -> int:
    """The whole of `prepare`, its processes' start included; returns source slices, those in quarantine too."""
    place = Path(tempfile.mkdtemp(dir=scratch)) / "store"
    report = prepare(export, place, OPTIONS, Site(workers=workers))
    return report.slices + report.quarantined


def limit(export: Path) -> int:
    """File bytes read by pydicom without decoding, and a plain 8 x 8 block mean, in this process; returns slices."""
    slices = 0
    for path in sorted(export.rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        plane = np.frombuffer(ds.PixelData, np.int16).reshape(64, 8, 64, 8)
        plane.mean(axis=(1, 3))
        slices += 1
    return slices


def monai_transform(export: Path, series: int) -> int:
    """LoadImaged + Orientationd + Spacingd + Resized to the store's pixels, for some of the series; returns slices."""
    from monai.transforms import Compose, LoadImaged, Orientationd, Resized, Spacingd

    pixel_mm = OPTIONS.field_mm / OPTIONS.size
    steps = Compose(
        [
            LoadImaged("image", reader="PydicomReader", ensure_channel_first=True),
            Orientationd("image", axcodes="LPS", labels=None),
            Spacingd("image", pixdim=(pixel_mm, pixel_mm, 8.0), mode="bilinear"),
            Resized("image", spatial_size=(OPTIONS.size, OPTIONS.size, -1), mode="area"),
        ]
    )
    slices = 0
    for place in sorted(export.iterdir())[:series]:
        slices += int(steps({"image": str(place)})["image"].shape[-1])
    return slices


def cpu_s() -> float:
    """Processor time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(function: Callable[[], int]) -> tuple[float, float]:
    """Slices a second, and processor milliseconds a slice, of one call."""
    began, used = time.perf_counter(), cpu_s()
    slices = function()
    return slices / (time.perf_counter() - began), 1000 * (cpu_s() - used) / slices


def run(patients: int, repeats: int, monai_series: int) -> tuple[Rates, Rates]:
    """Slices a second, and processor milliseconds a slice, of every way, by repeat; the ways take turns."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        plain, packed = scratch / "plain", scratch / "packed"
        write_export(plain, patients, compressed=False)
        write_export(packed, max(4, patients // 16), compressed=True)
        ways: dict[str, Callable[[], int]] = {
            "prepare, 2 workers": lambda: ours(plain, scratch, 2),
            "limit, 1 core": lambda: limit(plain),
            "MONAI": lambda: monai_transform(plain, monai_series),
            "prepare, 1 worker": lambda: ours(plain, scratch, 1),
            "prepare, JPEG 2000, 1 worker": lambda: ours(packed, scratch, 1),
            "prepare, JPEG 2000, 2 workers": lambda: ours(packed, scratch, 2),
        }
        monai_transform(plain, 1)
        rates: Rates = {way: [] for way in ways}
        costs: Rates = {way: [] for way in ways}
        for repeat in range(repeats):
            for way, function in ways.items():
                rate, cost = measured(function)
                rates[way].append(rate)
                costs[way].append(cost)
                told = f"{repeat + 1}/{repeats} {way}: {rate:.0f} slices/s, {cost:.2f} ms of processor a slice"
                print(told, file=sys.stderr, flush=True)
        return rates, costs


def summary(rates: Rates) -> dict[str, float]:
    """The ratios that carry a promise, from the medians."""
    middle = {way: statistics.median(values) for way, values in rates.items()}
    return {
        "times faster than MONAI (wanted: at least 10)": middle["prepare, 2 workers"] / middle["MONAI"],
        "times the limit's time, 2 workers (wanted: at most 2)": middle["limit, 1 core"] / middle["prepare, 2 workers"],
        "times the limit's time, 1 worker": middle["limit, 1 core"] / middle["prepare, 1 worker"],
        "JPEG 2000, 2 workers against 1": middle["prepare, JPEG 2000, 2 workers"]
        / middle["prepare, JPEG 2000, 1 worker"],
    }


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {name: version(name) for name in ("numpy", "pydicom", "monai", "torch", "scipy")}
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "load average at the end (1, 5, 15 min)": load,
        "python": platform.python_version(),
        **versions,
    }


def write_results(out: Path, patients: int, rates: Rates, costs: Rates, command: str) -> None:
    """intake.md and intake.json."""
    ratios, told = summary(rates), machine()
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "command": command,
        "patients": patients,
        "rates": rates,
        "processor_ms": costs,
        "ratios": ratios,
        "machine": told,
    }
    (out / "intake.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# Intake: slices a second",
        "",
        f"`{command}`: {patients} patients of 30 slices (512 x 512, Lung-PET-CT-Dx, CC BY 4.0) in one run, in turn.",
        "Ours is the whole of `prepare` on every slice: start of its processes, headers, judgement, HU, centring,",
        "screen for burned-in text, area average, store with SHA-256, flushed to the disk. MONAI is LoadImaged",
        "(PydicomReader) + Orientationd + Spacingd + Resized to the store's pixels, warm, with its threads; the limit",
        "is pydicom's dcmread without decoding and a plain 8 x 8 block mean in one process. Compressed: JPEG 2000,",
        "whose decoders are processes of their own: their processor time is not in the last column. Other work on the",
        "machine (see the load) moves the slices/s of all ways, and those of several processes most.",
        "",
        "| way | slices/s, median | each | processor ms a slice, median |",
        "|---|---|---|---|",
        *(
            f"| {way} | {statistics.median(values):.0f} | {', '.join(f'{value:.0f}' for value in values)} "
            f"| {statistics.median(costs[way]):.2f} |"
            for way, values in rates.items()
        ),
        "",
        "| ratio of medians | |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in ratios.items()),
        "",
        *(f"- {name}: {value}" for name, value in told.items()),
        "",
    ]
    (out / "intake.md").write_text("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--monai-series", type=int, default=4, help="series that MONAI's rate is measured on")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results")
    arguments = parser.parse_args()
    rates, costs = run(arguments.patients, arguments.repeats, arguments.monai_series)
    command = f"python benchmarks/intake.py --patients {arguments.patients} --repeats {arguments.repeats}"
    write_results(arguments.out, arguments.patients, rates, costs, command)
    print((arguments.out / "intake.md").read_text())


if __name__ == "__main__":
    main()
