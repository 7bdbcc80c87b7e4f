"""The model that a job starts from: is it at hand, is it the named one, does it fit the plan and the stores?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedscan.federation import job_folder
from fedscan.federation.findings import Finding, JobError
from fedscan.plan import Plan

if TYPE_CHECKING:
    from fedscan.training.model_file import ModelFile


def findings(job: Path, plan: Plan, init: Path | None, stores: Mapping[str, Path]) -> Iterator[Finding]:
    """`init` is the file that the command names; else the one of `job new`, or a start that comes with fedscan."""
    source = init or job_folder.remembered_init(job)
    if plan.init_sha256 is None:
        if init is not None:
            yield Finding("error", "--init", "the plan starts from scratch: give --init to `fedscan job new`")
        return
    if source is None:
        yield Finding(
            "error",
            "plan.init_sha256",
            f"the plan starts from model {plan.init_sha256[:12]}: give its file with --init",
        )
        return
    try:
        got = job_folder.file_sha256(source)
    except JobError as error:
        yield from error.findings
        return
    if got != plan.init_sha256:
        yield Finding("error", str(source), f"is model {got[:12]}, the plan starts from {plan.init_sha256[:12]}")
        return
    yield from _fits(source, plan, stores)


def _fits(source: Path, plan: Plan, stores: Mapping[str, Path]) -> Iterator[Finding]:
    from fedscan.training import model_file
    from fedscan.training.weights import check_update, shapes_of

    try:
        model = model_file.load_model(source)
    except (OSError, ValueError) as error:
        yield Finding("error", str(source), f"is no model of ours: {error}")
        return
    cure = "make a public start for this plan with `fedscan warm-start`"
    if reasons := check_update(model.weights, shapes_of(plan.model)):
        more = f" (and {len(reasons) - 1} more such differences)" if len(reasons) > 1 else ""
        yield Finding("error", str(source), f"does not fit the plan's network: {reasons[0]}{more}; {cure}")
    if model.plan.window != plan.window:
        text = f"was trained in window {model.plan.window!r}, the plan's is {plan.window!r}; {cure}"
        yield Finding("warning", str(source), text)
    yield from _values(source, model, stores)


def _values(source: Path, model: ModelFile, stores: Mapping[str, Path]) -> Iterator[Finding]:
    """HU in a field around the body and pictures cropped to the lungs look so unlike that little of a start is left."""
    from ctslices.store import SliceStore, StoreError

    learnt = model.provenance.get("values")
    for site, path in sorted(stores.items()):
        try:
            values = SliceStore.open(path).manifest.values
        except StoreError:
            continue  # said among the findings on stores
        if learnt in ("hu", "grey") and values != learnt:
            look = "pictures" if values == "grey" else "hu"
            text = f"learnt {_NAMES[learnt]}, the store at {site} holds {_NAMES[values]}"
            yield Finding("warning", str(source), f"{text}: make a start with `fedscan warm-start --look {look}`")


_NAMES = {"hu": "HU", "grey": "grey values of pictures"}
