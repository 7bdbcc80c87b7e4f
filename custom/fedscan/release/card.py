"""What lies beside synthetic slices: card.json for programs, README.txt for people. No clock, no machine in it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ctslices.window import WINDOWS
from fedscan.readable import readable
from fedscan.release.draw import Draw
from fedscan.training.model_file import ModelFile, window_note

CARD_VERSION = 1


def make_card(draw: Draw, model: ModelFile, request: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """The card as JSON-ready values. `request` is what was asked for (seed, sampler and so on)."""
    window = WINDOWS[draw.window]
    labels = Counter(draw.label_of(i) or "none" for i in range(len(draw.hu)))
    return {
        "card_version": CARD_VERSION,
        "synthetic": True,
        "slices": len(draw.hu),
        "size_px": int(draw.hu.shape[1]),
        "spacing_mm": draw.pixel_mm,
        "values": draw.values,
        "labels": dict(sorted(labels.items())),
        "window": {"name": draw.window, "lowest": window.low, "highest": window.high},
        "limits": window_note(model.plan),
        "model_sha256": model.sha256,
        "plan_digest": model.plan.digest,
        "plan": model.plan.model_dump(mode="json"),
        "unit": model.provenance.get("unit", "unknown"),
        "provenance": model.provenance,
        "request": request,
        "identity": draw.identity,
        "files": files,
    }


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Write card.json and README.txt into `folder`."""
    text = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "card.json").write_bytes(text.encode())
    (folder / "README.txt").write_bytes(_readme(card).encode())


def _readme(card: dict[str, Any]) -> str:
    """The provenance is whatever the model's file says: each of it a text in its own line."""
    request, told = card["request"], card["provenance"]
    sites = told.get("sites")
    took_part = ", ".join(sorted(map(readable, sites))) if isinstance(sites, dict) else ""
    window = card["window"]
    scale = "no known scale" if card["spacing_mm"] is None else f"{card['spacing_mm']:.4g} mm a pixel"
    unit = "HU" if card["values"] == "hu" else "grey levels"
    note = {"image": "The training data knew no patients (unit: image).\n"}.get(str(card["unit"]), "")
    return (
        f"SYNTHETIC SLICES: {card['slices']} of {card['size_px']} x {card['size_px']} pixels, {scale}.\n"
        "Drawn by a diffusion model; no picture here is a scan of a person. Not for diagnosis.\n\n"
        f"Values: {unit}, {window['lowest']:.0f} to {window['highest']:.0f} (window {window['name']}).\n"
        f"{card['limits']}\n{note}\n"
        f"Labels: {', '.join(f'{name} {count}' for name, count in card['labels'].items())}\n"
        f"Drawn with: {request['sampler']}, {request['steps']} steps, seed {request['seed']}\n"
        f"Model: SHA-256 {card['model_sha256']}\n"
        f"Plan: {card['plan_digest']} ({card['plan']['name']})\n"
        f"Sites that took part: {took_part or 'not recorded'}\n"
        f"Privacy: {readable(str(told.get('privacy', 'not recorded')))}\n\n"
        "card.json holds all of it for programs, with the whole plan.\n"
    )
