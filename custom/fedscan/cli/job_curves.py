"""`fedscan job curves`: a run's curves for TensorBoard or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscan.cli.output import fail


def curves(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, while it runs or afterwards.")],
    mlflow: Annotated[
        str | None,
        typer.Option("--mlflow", metavar="URI", help="Log the run to this MLflow tracking server instead."),
    ] = None,
) -> None:
    """Draw a run's curves, by site and global: loss, norm and weight of updates, seconds, epsilon.

    They come from RUN/rounds.jsonl, so from what the sites' guards let out. Look at them with
    `tensorboard --logdir RUN/tensorboard`.
    """
    from fedscan.federation import tracking

    try:
        typer.echo(tracking.mlflow(run_folder, mlflow) if mlflow else str(tracking.tensorboard(run_folder)))
    except tracking.TrackingError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
