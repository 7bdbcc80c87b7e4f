"""Which submissions a site took: a nonce is taken once, in a file of its own that is there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ctslices.files import sync_folder
from fedscan.plan import Plan, Submission
from fedscan.privacy.facts import NonceUse
from fedscan.privacy.own_files import OwnFileError, read_object


class NonceError(ValueError):
    """A nonce was used before, or its file cannot be read."""


class Nonces:
    """STATE/nonces/NONCE.json."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "nonces"

    def use_of(self, submission: Submission) -> NonceUse | None:
        """What the nonce was taken for; None: it is new. Raises NonceError for a file that cannot be understood."""
        path = self._path(submission)
        if not os.path.lexists(path):
            return None
        try:
            body = read_object(path, "nonce")
            start_round = body["start_round"]
            if type(start_round) is not int:
                raise KeyError("start_round")
            return NonceUse(str(body["plan_digest"]), str(body["run_id"]), start_round)
        except (OwnFileError, KeyError):
            raise NonceError("submission: what is noted of its nonce cannot be read: submit the job anew") from None

    def take(self, plan: Plan, submission: Submission) -> None:
        """Notes the nonce as used, durably. Raises NonceError when another process took it first, OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(submission)
        partial = self._folder / f".{submission.nonce}.{os.getpid()}.part"
        partial.unlink(missing_ok=True)
        body = {"plan_digest": plan.digest, "run_id": submission.run_id, "start_round": submission.start_round}
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(body | {"expires": submission.expires}, file)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)
        except FileExistsError:
            raise NonceError("submission: its nonce was used before at this site: submit the job anew") from None
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _path(self, submission: Submission) -> Path:
        return self._folder / f"{submission.nonce}.json"
