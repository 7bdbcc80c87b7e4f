"""The server's own places: where runs and models lie, and models that its operator lays on the shelf."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedscan.federation import job_folder, places
from fedscan.federation.places import SERVER_FILE, PlacesError, ServerPlaces

_SERVER_JSON = Path("startup") / "fed_server.json"


class ShelfError(ValueError):
    """What was asked of the server's places cannot be done; the text says why and what to do."""


@dataclass(frozen=True)
class Shelved:
    """A model on the shelf."""

    sha256: str
    path: Path
    new: bool


def places_of(server_kit: Path) -> ServerPlaces:
    """A server kit's places, absolute. Raises ShelfError."""
    _check(server_kit)
    try:
        return places.server_places(server_kit / "local")
    except PlacesError as error:
        raise ShelfError(f"{server_kit}: {error}; lay it anew with `fedscan server places {server_kit}`") from None


def set_places(server_kit: Path, folder: Path) -> ServerPlaces:
    """Keeps runs (RUNS/RUN_ID) and shelf below `folder` from the next job on; what lies elsewhere stays there.

    Raises ShelfError, OSError.
    """
    _check(server_kit)
    folder = folder.resolve()
    own = {"run_folder": str(folder / "runs" / "{run_id}"), "shelf": folder / "shelf"}
    try:  # how long runs are kept, and what their outputs must say, go with them
        made = places.server_places(server_kit / "local").model_copy(update=own)
    except PlacesError:
        made = ServerPlaces.model_validate(own)
    for place in (folder, folder / "runs", folder / "shelf"):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = server_kit / "local" / SERVER_FILE
    job_folder.write_json(file, made.model_dump(mode="json"))
    file.chmod(0o600)
    return made


def add_model(server_kit: Path, model: Path) -> Shelved:
    """Lays a model file on the shelf under its SHA-256, whole or not at all, mode 0600.

    Raises ShelfError for anything but a whole model file of ours; OSError where the shelf cannot be written.
    """
    from fedscan.training.model_file import load_model

    shelf = places_of(server_kit).shelf
    shelf.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = shelf / f".{os.getpid()}.partial"
    try:
        # What is checked is what lies there in the end: the file may change while it is read.
        shutil.copyfile(model, partial)
        partial.chmod(0o600)
        sha256 = load_model(partial).sha256
        path = shelf / f"{sha256}.safetensors"
        new = not path.exists()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except ValueError as error:
        raise ShelfError(f"{model} is no model of ours: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return Shelved(sha256, path, new)


def _check(server_kit: Path) -> None:
    if not (server_kit / _SERVER_JSON).is_file():
        raise ShelfError(f"{server_kit} is no server kit: it has no {_SERVER_JSON}")
