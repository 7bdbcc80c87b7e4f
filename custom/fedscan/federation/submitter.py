"""Who signed an app folder: the certificate that verifies, under the federation's root that this site holds."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from nvflare.lighter.tool_consts import NVFLARE_SUBMITTER_CRT_FILE
from nvflare.lighter.utils import verify_folder_signature_and_get_signers

from fedscan.privacy.facts import Submitter

ROLE = "lead"
"""In the certificate of whoever may submit, signed by the root. NVFlare takes a signature by anybody's certificate,
also by a site's, a member's or the server's own."""
_MAX_CERT_BYTES = 1 << 16


def verified_submitter(app: Path, root_ca: Path) -> Submitter | None:
    """The one lead who signed every file of `app`; None where a file is not signed, or by more than one, or by nobody
    whose certificate this root signed for a lead."""
    verified, signers = verify_folder_signature_and_get_signers(str(app), str(root_ca))
    if not verified or len(signers) != 1:
        return None
    certificates = {_certificate(path) for path in app.rglob(NVFLARE_SUBMITTER_CRT_FILE)}
    if len(certificates) != 1 or (certificate := certificates.pop()) is None or not _is_leads(certificate):
        return None
    return Submitter(
        name=str(signers[0][0]),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        issued=certificate.not_valid_before_utc,
    )


def _is_leads(certificate: x509.Certificate) -> bool:
    """By its role, which NVFlare's provisioning writes as the subject's unstructured name."""
    return [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)] == [ROLE]


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificate(file.read(_MAX_CERT_BYTES))
    except (OSError, ValueError):
        return None
