"""`fedscan generate`: synthetic slices from a model file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json

if TYPE_CHECKING:
    from fedscan.release.formats import Format


class FormatName(StrEnum):
    """What `--format` takes."""

    PNG = "png"
    NPZ = "npz"
    NIFTI = "nifti"
    DICOM = "dicom"


class SamplerChoice(StrEnum):
    """What `--sampler` takes."""

    SA_SOLVER = "sa_solver"
    DPMPP = "dpmpp"
    DDIM = "ddim"
    DDPM = "ddpm"


class VarianceChoice(StrEnum):
    """What `--variance` takes."""

    POSTERIOR = "posterior"
    BETA = "beta"


_FORMATS: dict[FormatName, Format] = {
    FormatName.PNG: "png",
    FormatName.NPZ: "npz",
    FormatName.NIFTI: "nifti",
    FormatName.DICOM: "dicom",
}


def generate(
    model: Annotated[Path, typer.Argument(help="A run's model.safetensors.", metavar="MODEL")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make; it appears once it is complete.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many slices.")] = 64,
    formats: Annotated[
        list[FormatName] | None,
        typer.Option("--format", metavar="FORMAT", help="png (default), npz, nifti or dicom; may be repeated."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="One class of the model; default: all, in the file's shares or evenly."),
    ] = None,
    sampler: Annotated[
        SamplerChoice,
        typer.Option(
            "--sampler", metavar="NAME", help="sa_solver, dpmpp (both need few steps), ddim, or ddpm (takes all)."
        ),
    ] = SamplerChoice.SA_SOLVER,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Network evaluations; default: 25, ddim 50, ddpm all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same bytes.")] = 0,
    guidance: Annotated[
        float,
        typer.Option("--guidance", min=0.0, help="Classifier-free guidance; 0: none. Needs a model with classes."),
    ] = 0.0,
    variance: Annotated[
        VarianceChoice,
        typer.Option("--variance", metavar="NAME", help="Of ddpm's noise: posterior or beta, the paper's two choices."),
    ] = VarianceChoice.POSTERIOR,
    clip: Annotated[bool, typer.Option(help="Keep the predicted slice within the window at each step.")] = True,
    field_mm: Annotated[
        float | None, typer.Option("--field-mm", help="Side of a slice in mm; default: as the model file says, or 360.")
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="The model was trained on pictures: grey levels, no HU, no scale.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Draw synthetic slices from a model, with a card that says what they are and what they can never show.

    A draw that was stopped goes on when the same command is given again.

    Example: `fedscan generate RUN/model.safetensors --count 64 --out synthetic --format png --format dicom`
    """
    from fedscan.diffusion.samplers import Settings
    from fedscan.release import generate as release
    from fedscan.training.model_file import ModelFileError

    if model.is_dir():
        fail(f"{model} is a folder: name the model file in it, such as {model / 'model.safetensors'}")
    try:
        settings = Settings(sampler=sampler.value, steps=steps, variance=variance.value, guidance=guidance, clip=clip)
        with _progress(as_json) as progress:
            made = release.generate(
                model,
                out,
                count,
                [_FORMATS[name] for name in formats or [FormatName.PNG]],
                label=label,
                seed=seed,
                settings=settings,
                field_mm=field_mm,
                values="grey" if grey else None,
                progress=progress,
            )
    except (ModelFileError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror or 'cannot read or write'}: {error.filename or model.name}")
    except KeyboardInterrupt:
        fail("stopped by you. The same command goes on after the slices that are finished")
    if as_json:
        print_json(made.card)
        return
    typer.echo(f"{made.card['slices']} synthetic slices in {out}")
    typer.echo(made.card["limits"])


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; none where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("drawing"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("drawing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
