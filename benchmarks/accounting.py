"""Three accountants on one grid: how far apart they are, where PRV fails, and what epsilon costs in time.

    python benchmarks/accounting.py --out docs/results

Charged is what fedscan.privacy.accounting says (privacy loss distributions of dp-accounting, rounded up); Opacus'
RDP and PRV accountants are the other two. About ten CPU minutes, most of them PRV's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import random
import resource
import signal
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fedscan.privacy import accounting
from fedscan.privacy.accounting import AccountingError, epsilon, noise_multiplier_for
from fedscan.privacy.event import Event

SAMPLE_RATES = (0.001, 0.01, 0.1, 0.25, 0.5)
NOISES = (0.1, 0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 20.0)
STEPS = (1, 10, 100, 1000, 10_000)
DELTAS = (1e-3, 1e-5)
BANDS = (0.05, 0.5, 2.0, 10.0, 50.0, 1000.0)
LIMIT_S = 60
LIMIT_BYTES = 4 << 30
SEGMENTS = (1, 10, 40, 200)
ROUNDED = ((2.0, 0.25, 200), (4.0, 0.25, 2000), (8.0, 0.1, 10_000), (80.0, 0.25, 100_000), (0.8, 0.001, 1_000_000))
CALIBRATED = ((8.0, 0.25, 200), (3.0, 0.25, 200), (1.0, 0.25, 200), (3.0, 0.1, 2000), (8.0, 0.01, 1000))

Segment = tuple[float, float, int]
"""noise_multiplier, sample_rate, steps."""


class TooLongError(Exception):
    """LIMIT_S of CPU time passed."""


def pld(segments: list[Segment], delta: float) -> float:
    """What is charged."""
    return epsilon([_event(*segment) for segment in segments], delta)


def _event(sigma: float, q: float, steps: int) -> Event:
    return Event(noise_multiplier=sigma, sample_rate=q, steps=steps, unit="patient")


def opacus_rdp(segments: list[Segment], delta: float) -> float:
    """Opacus' RDP accountant."""
    accountant = RDPAccountant()
    accountant.history = list(segments)
    return float(accountant.get_epsilon(delta=delta))


def opacus_prv(segments: list[Segment], delta: float) -> float:
    """Opacus' PRV accountant, with its default errors (epsilon 0.01, delta / 1000)."""
    accountant = PRVAccountant()
    accountant.history = list(segments)
    return float(accountant.get_epsilon(delta=delta))


ACCOUNTANTS: dict[str, Callable[[list[Segment], float], float]] = {"pld": pld, "rdp": opacus_rdp, "prv": opacus_prv}


def ask(name: str, segments: list[Segment], delta: float) -> dict[str, Any]:
    """One accountant's epsilon with its CPU seconds; or what went wrong, in a word."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    began = time.process_time()
    try:
        value: float | str = ACCOUNTANTS[name](segments, delta)
    except (ArithmeticError, ValueError, MemoryError, RuntimeError, AccountingError, TooLongError) as error:
        value = type(error).__name__.removeprefix("_Array")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if isinstance(value, float):
        value = value if math.isfinite(value) else str(value)
    if isinstance(value, float) and value < 0.0:
        return {"epsilon": "negative", "got": value, "cpu_s": time.process_time() - began}
    return {"epsilon": value, "cpu_s": time.process_time() - began}


def _too_long(*_: object) -> None:
    raise TooLongError


def cold() -> None:
    """Forgets all that was computed."""
    for cached in (accounting._epsilon, accounting._composed, accounting._segment_loss, accounting._step_loss):
        cached.cache_clear()


def grid_rows(log: Path) -> list[dict[str, Any]]:
    """Every accountant at every point where epsilon lies between the bands' ends, or is none.

    What Opacus' accountants said is kept in `log`, so that a stopped run goes on.
    """
    rows, kept = [], {}
    if log.exists():
        kept = {tuple(entry["point"]): entry for entry in map(json.loads, log.read_text().splitlines())}
    with log.open("a") as file:
        for q, sigma, steps, delta in itertools.product(SAMPLE_RATES, NOISES, STEPS, DELTAS):
            charged = ask("pld", [(sigma, q, steps)], delta)
            row = {"sample_rate": q, "noise_multiplier": sigma, "steps": steps, "delta": delta, "pld": charged}
            if isinstance(charged["epsilon"], str) or BANDS[0] <= charged["epsilon"] <= BANDS[-1]:
                point = (q, sigma, steps, delta)
                if point not in kept:
                    kept[point] = {name: ask(name, [(sigma, q, steps)], delta) for name in ("rdp", "prv")}
                    file.write(json.dumps({"point": point, **kept[point]}) + "\n")
                    file.flush()
                row |= {name: kept[point][name] for name in ("rdp", "prv")}
            rows.append(row)
    return rows


def exact_gaussian(mu: float, delta: float) -> float:
    """Balle and Wang 2018, thm. 8; NaN where delta alone suffices."""

    def excess(e: float) -> float:
        return float(ndtr(mu / 2 - e / mu) - math.exp(e + log_ndtr(-mu / 2 - e / mu)) - delta)

    return float(brentq(excess, 0.0, 600.0, xtol=1e-13)) if excess(0.0) > 0 else math.nan


def exact_rows() -> Iterator[dict[str, Any]]:
    """Without sampling the truth is known: T steps are one Gaussian of sigma / sqrt(T)."""
    for mu, steps, delta in itertools.product(
        (0.02, 0.3, 1.0, 3.0, 8.0), (1, 100, 10_000, 1_000_000), (1e-4, 1e-6, 1e-8)
    ):
        sigma, exact = math.sqrt(steps) / mu, exact_gaussian(mu, delta)
        if math.isnan(exact) or delta <= 1e-14 * steps:
            continue
        yield {
            "mu": mu,
            "steps": steps,
            "delta": delta,
            "exact": exact,
            "pld": pld([(sigma, 1.0, steps)], delta),
        }


def rounding_rows() -> Iterator[dict[str, Any]]:
    """What float64 does to delta: the same steps composed in four ways, at epsilons up to 30."""
    for segment in ROUNDED:
        sigma, q, steps = segment
        one = accounting._step_loss(sigma, q, accounting._interval((segment,)))
        ways = [_in_chunks(one, steps, size) for size in (7, 100, 1024, 3000)]
        apart = []
        for epsilon_at in (0.15 * i for i in range(200)):
            deltas = [float(way.get_delta_for_epsilon(epsilon_at)) for way in ways]
            apart.append(max(deltas) - min(deltas))
        yield {"noise_multiplier": sigma, "sample_rate": q, "steps": steps, "apart_a_step": max(apart) / steps}


def _in_chunks(one: PrivacyLossDistribution, steps: int, size: int) -> PrivacyLossDistribution:
    if steps <= size:
        return one.self_compose(steps, accounting._TRUNCATED)
    many, rest = divmod(steps, size)
    whole = _in_chunks(one.self_compose(size, accounting._TRUNCATED), many, size)
    return whole.compose(one.self_compose(rest, accounting._TRUNCATED), accounting._TRUNCATED) if rest else whole


def segment_rows() -> Iterator[dict[str, Any]]:
    """A ledger of many different events: first time, and with one round more."""
    for count in SEGMENTS:
        rng = random.Random(count)
        segments = [(rng.uniform(2, 10), rng.uniform(0.05, 0.5), rng.randint(1, 200)) for _ in range(count)]
        cold()
        row = {"segments": count, **{name: ask(name, segments, 1e-5) for name in ACCOUNTANTS}}
        yield row | {"pld_next": ask("pld", [*segments, (4.0, 0.25, 10)], 1e-5)}


def calibration_rows() -> Iterator[dict[str, Any]]:
    """Noise multiplier for a target epsilon."""
    from opacus.accountants.utils import get_noise_multiplier

    for target, q, steps in CALIBRATED:
        cold()
        began = time.process_time()
        row: dict[str, Any] = {"target": target, "sample_rate": q, "steps": steps, "delta": 1e-5}
        row["pld"] = noise_multiplier_for(target, 1e-5, q, steps)
        row["pld_cpu_s"] = time.process_time() - began
        for name in ("rdp", "prv"):
            began = time.process_time()
            row[name] = get_noise_multiplier(
                target_epsilon=target, target_delta=1e-5, sample_rate=q, steps=steps, accountant=name
            )
            row[f"{name}_cpu_s"] = time.process_time() - began
        yield row


def _share(value: float) -> str:
    return f"{100 * value:+.2f} %"


def agreement(rows: list[dict[str, Any]]) -> list[str]:
    """Table by size of epsilon."""
    lines = [
        "| epsilon charged | points | RDP against charged: median (least to most) | RDP, 100 steps and more "
        "| PRV against charged: median (least to most) | PRV apart at most, epsilon | PRV failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for low, high in itertools.pairwise(BANDS):
        mine = [r for r in rows if isinstance(r["pld"]["epsilon"], float) and low <= r["pld"]["epsilon"] < high]
        cells = []
        for name, least in (("rdp", 1), ("rdp", 100), ("prv", 1)):
            answered = [r for r in mine if r["steps"] >= least and isinstance(r[name]["epsilon"], float)]
            ratios = [r[name]["epsilon"] / r["pld"]["epsilon"] - 1 for r in answered]
            cells.append(f"{_share(statistics.median(ratios))} ({_share(min(ratios))} to {_share(max(ratios))})")
        good = [r for r in mine if isinstance(r["prv"]["epsilon"], float)]
        apart = max(abs(r["prv"]["epsilon"] - r["pld"]["epsilon"]) for r in good)
        lines.append(
            f"| {low:g} to {high:g} | {len(mine)} | {' | '.join(cells)} | {apart:.3f} | {len(mine) - len(good)} |"
        )
    return lines


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Where PRV fails, and what PLD says there."""
    failed = [r for r in rows if "prv" in r and not isinstance(r["prv"]["epsilon"], float)]
    kinds = Counter(r["prv"]["epsilon"] for r in failed)
    lines = [
        f"PRV failed at {len(failed)} of {sum('prv' in r for r in rows)} points: "
        + (", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none")
        + f" ({LIMIT_BYTES >> 30} GiB and {LIMIT_S} CPU s allowed a point).",
        "",
        "| noise multiplier | sample rate | steps | delta | PRV | CPU s | charged |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in failed:
        charged = r["pld"]["epsilon"]
        charged = "none below the thousands" if isinstance(charged, str) else f"{charged:.4g}"
        lines.append(
            f"| {r['noise_multiplier']:g} | {r['sample_rate']:g} | {r['steps']} | {r['delta']:g} "
            f"| {r['prv']['epsilon']} | {r['prv']['cpu_s']:.1f} | {charged} |"
        )
    return lines


def _value(cell: dict[str, Any]) -> str:
    value = cell["epsilon"]
    return f"{value if isinstance(value, str) else f'{value:.3f}'} ({cell['cpu_s']:.2f} s)"


def report(results: dict[str, Any]) -> str:
    """The page docs/results/accounting.md."""
    rows, exact, facts = results["grid"], results["exact"], results["facts"]
    asked = [r for r in rows if "prv" in r]
    over = [r["pld"] / r["exact"] - 1 for r in exact]
    refused = Counter(r["pld"]["epsilon"] for r in rows if isinstance(r["pld"]["epsilon"], str))
    below = [r for r in asked if isinstance(r["pld"]["epsilon"], float) and r["pld"]["epsilon"] > r["rdp"]["epsilon"]]
    seconds = [r["pld"]["cpu_s"] for r in rows]
    lines = [
        "# Accountants",
        "",
        f"`python benchmarks/accounting.py`; {facts['versions']}; {facts['processor']}, one thread, a busy machine: "
        "compare CPU times roughly.",
        "",
        "What is charged is dp-accounting's privacy loss distribution (PLD), discretised from above: the grid is "
        f"{accounting._INTERVAL:g} wide, finer where a step's loss is small, coarser where epsilon is large.",
        "",
        "## Against the truth (no sampling: an exact Gaussian)",
        "",
        f"{len(exact)} points, 1 to 1,000,000 steps, epsilon {min(r['exact'] for r in exact):.2g} to "
        f"{max(r['exact'] for r in exact):.3g}: charged is {_share(min(over))} to {_share(max(over))} of the exact "
        f"epsilon, below it at {sum(o < 0 for o in over)} points. float64: the same steps composed in four ways differ "
        f"by at most {max(r['apart_a_step'] for r in results['rounding']):.1e} of delta a step; "
        f"{accounting._ROUNDING_A_STEP:g} a step is taken off delta before epsilon is read.",
        "",
        "## Agreement",
        "",
        f"Grid: sample rate {', '.join(f'{q:g}' for q in SAMPLE_RATES)}; noise multiplier "
        f"{', '.join(f'{s:g}' for s in NOISES)}; steps {', '.join(str(s) for s in STEPS)}; delta "
        f"{', '.join(f'{d:g}' for d in DELTAS)}: {len(rows)} points, of which {len(asked)} have an epsilon between "
        f"{BANDS[0]:g} and {BANDS[-1]:g} or none.",
        "",
        *agreement(asked),
        "",
        f"RDP is an upper bound: it lay below what is charged at {len(below)} points. Charged epsilon took "
        f"{statistics.median(seconds):.3f} s (median), {max(seconds):.2f} s at most. Refused by PLD (no epsilon below "
        f"the thousands): {sum(refused.values())} points.",
        "",
        "The proofs of PLD and PRV want each event's noise and sample rate fixed beforehand. Where a later job is "
        "planned in view of an earlier result, the RDP bound is the proven one (Feldman and Zrnic 2021).",
        "",
        "## Where PRV fails",
        "",
        *failures(rows),
        "",
        "## Many different events",
        "",
        "Epsilon at delta 1e-5 (CPU s). `next round`: one event more, the others known.",
        "",
        "| events | PLD | PLD, next round | RDP | PRV |",
        "|---|---|---|---|---|",
        *(
            f"| {r['segments']} | {' | '.join(_value(r[name]) for name in ('pld', 'pld_next', 'rdp', 'prv'))} |"
            for r in results["segments"]
        ),
        "",
        "## Noise multiplier for a target epsilon (delta 1e-5)",
        "",
        "Ours is rounded up to four digits. The other two come from Opacus' `get_noise_multiplier`, which stops within "
        "0.01 of epsilon.",
        "",
        "| epsilon | sample rate | steps | PLD | RDP | PRV |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['target']:g} | {r['sample_rate']:g} | {r['steps']} | "
            + " | ".join(f"{r[name]:.4g} ({r[f'{name}_cpu_s']:.2f} s)" for name in ("pld", "rdp", "prv"))
            + " |"
            for r in results["calibration"]
        ),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """All tables; the page and the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/accounting"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # RDP: "the optimal order is the largest alpha"; PRV: overflows before it fails
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    arguments.work.mkdir(parents=True, exist_ok=True)
    grid = grid_rows(arguments.work / "grid.jsonl")
    results: dict[str, Any] = {
        "facts": {
            "versions": ", ".join(f"{name} {version(name)}" for name in ("dp-accounting", "opacus", "scipy")),
            "processor": platform.machine(),
        },
        "exact": list(exact_rows()),
        "rounding": list(rounding_rows()),
        "calibration": list(calibration_rows()),
        "segments": list(segment_rows()),
        "grid": grid,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "accounting.md").write_text(report(results))
    (arguments.out / "accounting.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
