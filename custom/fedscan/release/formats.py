"""Synthetic slices as PNG, npz and NIfTI. Every file says that it is synthetic.

The same draw gives the same bytes: nothing of the clock or the machine gets in. Writers fill a folder that nobody sees
yet; `generate` lets it appear once everything in it is on the disk.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ctslices.window import WINDOWS
from fedscan.release.draw import Draw

Format = Literal["png", "npz", "nifti", "dicom"]
FORMATS: tuple[Format, ...] = ("png", "npz", "nifti", "dicom")
GRID_MAX = 144
"""A contact sheet shows at most so many slices."""

_MARK = "SYNTHETIC: drawn by a diffusion model, not a scan of a person"


def to_display(hu: NDArray[np.int16], window: str) -> NDArray[np.uint8]:
    """Slices of any shape as grey values uint8, `window` (a name of ctslices') from black to white."""
    low, high = WINDOWS[window].low, WINDOWS[window].high
    scaled = (np.asarray(hu, np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0.0, 255.0)), np.uint8)


def contact_sheet(shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Slices uint8 [n, s, s] side by side in a grid that is about square: uint8 [rows * s, columns * s]."""
    n, side = len(shown), shown.shape[1]
    columns = max(1, math.ceil(math.sqrt(n)))
    rows = max(1, math.ceil(n / columns))
    sheet = np.zeros((rows * columns, side, side), np.uint8)
    sheet[:n] = shown
    return sheet.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)


def display_window(draw: Draw) -> str:
    """Pictures are shown as they are, narrow windows in themselves, everything else in the lung window."""
    if draw.values == "grey":
        return "grey"
    return draw.window if draw.window in ("mediastinum", "bone") else "lung"


def write_png(draw: Draw, folder: Path) -> list[Path]:
    """slice-00000.png and so on, 8 bits in the display window, and grid.png with the first `GRID_MAX`."""
    window = display_window(draw)
    shown = to_display(draw.hu, window)
    files = []
    for i, plane in enumerate(shown):
        files.append(folder / f"slice-{i:05d}.png")
        files[-1].write_bytes(_png(plane, window, draw.label_of(i)))
    if len(shown):
        files.append(folder / "grid.png")
        files[-1].write_bytes(_png(contact_sheet(shown[:GRID_MAX]), window, None))
    return files


def _png(plane: NDArray[np.uint8], window: str, label: str | None) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", _MARK)
    text.add_text("Window", f"{window}: {WINDOWS[window].low:.0f} to {WINDOWS[window].high:.0f}")
    if label is not None:
        text.add_text("Label", label)
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def write_npz(draw: Draw, folder: Path) -> list[Path]:
    """slices.npz: `hu` int16 [n, s, s], `label` int16 [n], `label_names`, `spacing_mm` float64 [2] and `about`.

    The spacing is NaN where there is none. Loads with allow_pickle=False.
    """
    spacing = np.nan if draw.pixel_mm is None else draw.pixel_mm
    about = {"mark": _MARK, "values": draw.values, "window": draw.window, "plan": draw.plan_digest}
    arrays = {
        "hu": draw.hu,
        "label": draw.label,
        "label_names": np.array(draw.label_names, dtype=np.str_),
        "spacing_mm": np.full(2, spacing),
        "about": np.array(json.dumps(about | {"method": draw.method, "model": draw.model_sha256}, sort_keys=True)),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            # A fixed time: zipfile would write the clock's.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())
    path = folder / "slices.npz"
    path.write_bytes(buffer.getvalue())
    return [path]


def write_nifti(draw: Draw, folder: Path) -> list[Path]:
    """slice-00000.nii.gz and so on: int16 [s, s, 1] each, a file a slice, since they are no volume.

    Axes and affine: i runs to the patient's left, j to the back (as in the store), so the affine (RAS) turns both; the
    middle of the slice is the origin. Without a scale the spacing is 1 and its unit unknown.
    """
    side = draw.hu.shape[1]
    pixel = draw.pixel_mm if draw.pixel_mm is not None else 1.0
    affine = np.diag([-pixel, -pixel, 1.0, 1.0])
    affine[:2, 3] = pixel * (side - 1) / 2
    files = []
    make: Any = nib.Nifti1Image
    for i, plane in enumerate(draw.hu):
        image: Any = make(np.ascontiguousarray(plane.T[:, :, None]), affine, dtype=np.int16)
        image.header.set_xyzt_units("mm" if draw.pixel_mm is not None else "unknown")
        image.header.set_qform(affine, code="scanner")
        image.header.set_sform(affine, code="scanner")
        image.header["descrip"] = f"SYNTHETIC slice, plan {draw.plan_digest[:12]}".encode()
        image.header["aux_file"] = (draw.label_of(i) or "")[:23].encode("ascii", "replace")
        files.append(folder / f"slice-{i:05d}.nii.gz")
        files[-1].write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    return files
