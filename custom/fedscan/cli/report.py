"""The demo's report: one self-contained HTML file that loads nothing, in light and dark."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedscan.cli.demo_facts import Facts, Wall

REASONS = {
    "not-an-image": "no medical image (a text, a table)",
    "unreadable": "cannot be read",
    "truncated": "the file ends too early",
    "undecodable": "the pixels cannot be decoded",
    "decoder-crashed": "its decoder died",
    "decoder-timeout": "its decoder did not end",
    "other-modality": "not CT",
    "no-pixel-data": "no pixels (a dose report)",
    "localizer": "a localizer (scout view)",
    "not-axial": "not an axial plane",
    "no-geometry": "no usable geometry",
    "no-patient-id": "no PatientID",
    "not-hu": "pixels are not Hounsfield units",
    "duplicate-instance": "the same image twice",
    "duplicate-series": "the same series twice",
    "other-kernel": "another kernel of the same scan",
    "too-few-slices": "too few slices",
    "burned-in-marked": "marked as carrying burned-in text",
    "burned-in-suspected": "suspected of burned-in text: in quarantine",
    "synthetic": "marked as synthetic",
    "excluded": "excluded by the hospital",
    "other-region": "not a chest",
}
"""Each reason of ctslices.reject in words for readers."""


STEPS = {
    "exports": "Writing the hospitals' exports as DICOM",
    "stores": "Preparing the slice stores",
    "sites": "Each hospital's key, ledger and policy",
    "job": "Making and checking the jobs",
    "start": "Training the public start on other phantoms",
    "run": "Federated training",
    "run-private": "Federated training under differential privacy",
    "synthetic": "Drawing synthetic slices",
}
"""Keys of the demo's steps, in words."""

TITLES = {"start": "Public start alone", "private": "Under differential privacy", "plain": "Without privacy"}
"""Of the three results."""
GRID_COLUMNS = 6


def write_report(facts: Facts, path: Path) -> None:
    """Render into `path`, whole or not at all."""
    text = render(facts)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def render(facts: Facts) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from fedscan import __version__
    from fedscan.cli.report_pictures import data_uri, grid, loss_svg, png

    environment = Environment(
        loader=PackageLoader("fedscan.cli", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "size": size_text,
        "count": count_text,
        "minutes": minutes_text,
        "shape": shape_text,
        "first_upper": first_upper,
    }
    strips = {"synthetic": facts.synthetic[:6]} | {name: hu[:6] for name, (hu, _) in facts.controls.items()}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        version=__version__,
        number_word={2: "Two", 3: "Three", 4: "Four"}.get(len(facts.hospitals), str(len(facts.hospitals))),
        plan=_plan_rows(facts),
        plan_json=facts.plan.model_dump_json(indent=2),
        checks=[(name.capitalize(), check) for name, (_, check) in facts.controls.items()],
        round_seconds=sum(r.seconds or 0.0 for r in facts.rounds) / max(len(facts.rounds), 1),
        seconds=[(title, facts.seconds[key]) for key, title in STEPS.items() if key in facts.seconds],
        reasons=REASONS,
        reason_table=_reason_table(facts),
        walls=[_wall_row(facts, wall) for wall in facts.walls],
        private_walls=[_wall_row(facts, wall) for wall in facts.private.walls],
        titles=TITLES,
        result_grids={
            result.key: data_uri(png(grid(result.hu[: GRID_COLUMNS**2], GRID_COLUMNS)))
            for result in facts.private.results
        },
        plots={budget.site: data_uri(budget.plot) for budget in facts.private.budgets},
        declared=_declared(facts),
        exp_epsilon=count_text(round(math.exp(facts.private.privacy.target_epsilon or 0.0))),
        parameter_count=sum(_size(shape) for shape in facts.parameters.values()),
        real_grid=data_uri(png(grid(facts.real, 8))),
        synthetic_grid=data_uri(png(grid(facts.synthetic[:64], 8))),
        strips={name: data_uri(png(grid(hu, 6))) for name, hu in strips.items()},
        # matplotlib escapes what it writes into an SVG
        loss=Markup(loss_svg(facts.rounds, [hospital.name for hospital in facts.hospitals])),  # nosec B704
    )


def _plan_rows(facts: Facts) -> list[tuple[str, str]]:
    plan = facts.plan
    work = (
        f"{plan.training.local_steps} steps"
        if plan.training.local_steps is not None
        else f"{plan.training.local_epochs} epochs"
    )
    return [
        ("Network", f"MONAI DiffusionModelUNet, preset {plan.model.preset or 'of its own'}"),
        ("Rounds", f"{plan.rounds}, each {work} of {plan.training.batch_size} slices at every hospital"),
        ("Optimiser", f"{plan.training.optimiser}, learning rate {plan.training.learning_rate:g}"),
        ("Recipe", f"{plan.diffusion.schedule} schedule, predicts {plan.diffusion.prediction}"),
        ("Window", f"{plan.window}: -1000 to 1000 HU" if plan.window == "full" else plan.window),
        ("Weight of a hospital", f"by its {plan.weighting}"),
        ("Average over rounds", f"half-life of {plan.ema.half_life_rounds:g} rounds"),
        ("Seed", str(plan.seed)),
    ]


def _reason_table(facts: Facts) -> list[tuple[str, list[int]]]:
    """(reason, count at each hospital), the most frequent first."""
    names = {reason for hospital in facts.hospitals for reason in hospital.rejected}
    rows = [(name, [hospital.rejected.get(name, 0) for hospital in facts.hospitals]) for name in names]
    return sorted(rows, key=lambda row: (-sum(row[1]), row[0]))


def _wall_row(facts: Facts, wall: Wall) -> dict[str, Any]:
    tensors = wall.sent.size_bytes
    return {
        "wall": wall,
        "export_bytes": next(h.export_bytes for h in facts.hospitals if h.name == wall.site),
        "rest_bytes": wall.all_sent_bytes - tensors,
        "channels": [(name, *totals) for name, totals in wall.channels.items()],
    }


def _declared(facts: Facts) -> float:
    """Patients that a hospital declares, on average."""
    sites = facts.private.privacy.sites.values()
    return sum(site.declared_patients for site in sites) / len(sites)


def _size(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def size_text(size_bytes: float) -> str:
    """12345678 as 12.3 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} bytes"


def count_text(number: int) -> str:
    """1234567 as 1 234 567, with narrow spaces."""
    return f"{number:,}".replace(",", "\u202f")


def minutes_text(seconds: float) -> str:
    """95 as 1 min 35 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def first_upper(text: str) -> str:
    """Not CT, where `capitalize` would say Not ct."""
    return text[:1].upper() + text[1:]


def shape_text(shape: tuple[int, ...]) -> str:
    """(64, 4, 3, 3) as 64 × 4 × 3 × 3."""
    return " × ".join(map(str, shape))
