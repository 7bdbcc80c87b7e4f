"""A site whose certificate does not hold now waits until it does, and says so.

NVFlare 2.9 looks at its own certificate when it connects, in a thread whose error nobody reads (client_train.py): the
process would stand still for ever without a word, also when the clock or the kit was put right meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from fedscan.federation import kit_files, site_certificates
from fedscan.federation.site_certificates import CertificateError

LOOK_EVERY_S, SAY_EVERY_S = 2.0, 60.0
WORDS = "this site's certificate does not hold now"
_log = logging.getLogger("FedscanCertificate")


def wait_until_it_holds() -> None:
    """In a process that a kit's start script started. What cannot be read is NVFlare's to say."""
    kit = os.environ.get(kit_files.KIT_VARIABLE)
    said = float("-inf")
    while kit is not None and (why := why_not(Path(kit) / "startup")):
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            _log.error("%s (%s): waiting for the right time, or for a renewed kit in this one's place", WORDS, why)
        time.sleep(LOOK_EVERY_S)


def why_not(startup: Path, now: datetime | None = None) -> str | None:
    """Why NVFlare would not connect with the certificates of a kit; None: they hold."""
    now = now or datetime.now(UTC)
    for name in (site_certificates.ROOT, "client.crt"):
        try:
            found = site_certificates.load(startup / name)
        except CertificateError:
            continue
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            return (
                f"startup/{name} holds from {found.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and the clock says {now:%Y-%m-%d %H:%M}"
            )
    return None
