"""Pictures of the report: slices as inline PNG, curves as inline SVG in the page's own colours."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedscan.federation.records import RoundRecord

Hu = NDArray[np.int16]

DISPLAY_HU = (-1000, 400)
"""Black and white of the grids: air to just above soft tissue; bone is white."""
_INK = "#010203"
_SITES = ("#0a0101", "#0a0102", "#0a0103", "#0a0104", "#0a0105", "#0a0106")
"""Placeholders that the SVG is drawn in; the page's variables replace them, so that it follows light and dark."""


def grid(hu: Hu, columns: int, zoom: int = 2, gap: int = 2) -> NDArray[np.uint8]:
    """A grid uint8 [h, w] of slices int16 [n, s, s], row by row, each pixel `zoom` times as large."""
    low, high = DISPLAY_HU
    grey = np.clip((hu.astype(np.float32) - low) / (high - low) * 255.0, 0, 255).astype(np.uint8)
    n, size, _ = grey.shape
    rows = -(-n // columns)
    out = np.full((rows * (size * zoom + gap) - gap, columns * (size * zoom + gap) - gap), 24, np.uint8)
    for index, plane in enumerate(grey):
        top, left = (index // columns) * (size * zoom + gap), (index % columns) * (size * zoom + gap)
        out[top : top + size * zoom, left : left + size * zoom] = plane.repeat(zoom, 0).repeat(zoom, 1)
    return out


def png(picture: NDArray[np.uint8]) -> bytes:
    """PNG of a grey picture uint8 [h, w]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """For the src of an image in a page that loads nothing."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def side_by_side(real: Hu, synthetic: Hu, count: int = 24, columns: int = 6) -> NDArray[np.uint8]:
    """Real slices on the left, synthetic ones on the right: the picture of the README."""
    left, right = grid(real[:count], columns), grid(synthetic[:count], columns)
    return np.concatenate([left, np.full((len(left), 28), 255, np.uint8), right], axis=1)


def loss_svg(rounds: Sequence[RoundRecord], sites: Sequence[str]) -> str:
    """The loss by site and round as an SVG element in the page's own colours (--site-1 ..., currentColor)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fedscan",
        "font.family": "sans-serif",
        "font.size": 12,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for site, colour in zip(sites, _SITES, strict=False):
            points = [
                (r.round + 1, s.loss) for r in rounds if r.round is not None and (s := r.sites.get(site)) and s.loss
            ]
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.8, label=site)
        axes.set_yscale("log")
        axes.set_xlabel("round")
        axes.set_ylabel("loss (mean over the round's steps)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", which="both", color=_INK, alpha=0.12)
        axes.legend(frameon=False)
        figure.patch.set_alpha(0.0)
        axes.patch.set_alpha(0.0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue())


def _themed(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", '<svg role="img" aria-label="Loss by round, one line for each hospital" ', 1)
    svg = svg.replace(_INK, "currentColor")
    for number, colour in enumerate(_SITES, start=1):
        svg = svg.replace(colour, f"var(--site-{number})")
    return svg
