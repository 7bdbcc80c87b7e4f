"""Who signed an app folder: the certificate that verifies, under the federation's root that this site holds."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from nvflare.lighter.tool_consts import NVFLARE_SUBMITTER_CRT_FILE
from nvflare.lighter.utils import verify_folder_signature_and_get_signers

from fedscan.privacy.facts import Submitter

_MAX_CERT_BYTES = 1 << 16


def verified_submitter(app: Path, root_ca: Path) -> Submitter | None:
    """The one person who signed every file of `app`; None where a file is not signed, or by more than one, or by
    nobody whose certificate this root signed."""
    verified, signers = verify_folder_signature_and_get_signers(str(app), str(root_ca))
    if not verified or len(signers) != 1:
        return None
    certificates = {_certificate(path) for path in app.rglob(NVFLARE_SUBMITTER_CRT_FILE)}
    if len(certificates) != 1 or (certificate := certificates.pop()) is None:
        return None
    return Submitter(
        name=str(signers[0][0]),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        issued=certificate.not_valid_before_utc,
    )


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificate(file.read(_MAX_CERT_BYTES))
    except (OSError, ValueError):
        return None
