"""epsilon over the charged rounds, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedscan.privacy.ledger_report import SpendPoint

_LINE, _LIMIT, _JOB = "#1f4e79", "#a03020", "#888888"


def png(points: Sequence[SpendPoint], delta: float, max_epsilon: float | None, site: str) -> bytes:
    """PNG of what `points` say; `max_epsilon` is the policy's, drawn as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rounds, epsilons = [0, *(p.rounds for p in points)], [0.0, *(p.epsilon for p in points)]
    axes.plot(rounds, epsilons, color=_LINE, marker="o", markersize=3, label="spent")
    for before, after in pairwise(points):
        if before.run_id != after.run_id:
            axes.axvline(before.rounds, color=_JOB, linewidth=0.8, linestyle=":")
    if max_epsilon is not None:
        axes.axhline(max_epsilon, color=_LIMIT, linewidth=1.2, linestyle="--", label="policy's max_epsilon")
    axes.set(
        xlabel="rounds charged, over all jobs (dotted: another job)",
        ylabel=f"epsilon at delta {delta:g}",
        title=f"{site}: privacy budget",
    )
    axes.set_ylim(bottom=0.0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
