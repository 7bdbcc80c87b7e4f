"""A list that comes with a task bites before the round is charged, and a kept answer does not get past it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedscan.federation import revocation
from fedscan.federation.paid_round import PaidTraining
from fedscan.federation.revocation import RevocationList, Revocations
from fedscan.privacy.charging import Refused
from fedscan.privacy.facts import Submitter

NOW = datetime.now(UTC)


class Root:
    """A root of the test's own."""

    def __init__(self, folder: Path) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
        built = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
        self.file = folder / "rootCA.pem"
        self.file.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        self._key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def list(self, number: int, *names: str) -> str:
        revoked = dict.fromkeys(names, NOW.isoformat())
        return revocation.sign(RevocationList(number=number, revoked=revoked), self._key)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


@pytest.fixture
def train(new_hospital: Callable[..., Any], submitter: Submitter, root: Root) -> Callable[..., Any]:
    """Asks for a round with a list in its task; returns the hospital's charged steps and the reasons."""
    hospital = new_hospital()
    known = Revocations(hospital.setup.state / revocation.FILE, root.file)

    def ask(text: str | None, issued: datetime | None = NOW - timedelta(days=1)) -> tuple[int, str]:
        signer = replace(submitter, issued=issued)
        training = PaidTraining(hospital.setup, hospital.plan, hospital.submission, "hosp-a", signer, known)
        task = hospital.task(revocations=text, model_digest="0" * 64)  # refused for its model, if not for its signer
        with pytest.raises(Exception) as refused:
            training.train_until(task, hospital.weights, lambda: False, time.monotonic() + 5.0)
        reasons = refused.value.reasons if isinstance(refused.value, Refused) else (str(refused.value),)
        return sum(event.steps for event in hospital.site.open_ledger().events()), "; ".join(reasons)

    return ask


def test_a_revoked_submitters_round_is_refused_uncharged_once_the_list_has_come(
    train: Callable[..., Any], root: Root, submitter: Submitter
) -> None:
    assert "not the one that the task names" in train(None)[1]
    assert "not the one that the task names" in train(root.list(1, "somebody@else.org"))[1]
    assert train(root.list(2, submitter.name)) == (0, "submitter: revoked by list 2 of the federation's root")
    for later in (None, root.list(1, "somebody@else.org")):
        assert "revoked by list 2" in train(later)[1], "a server that withholds the list, or sends an older one"
    assert "not the one that the task names" in train(root.list(2, submitter.name), NOW + timedelta(hours=1))[1]


def test_a_list_that_is_not_the_roots_is_refused_and_so_is_the_round(
    train: Callable[..., Any], tmp_path: Path, submitter: Submitter
) -> None:
    (tmp_path / "other").mkdir()
    assert "not signed by this federation's root" in train(Root(tmp_path / "other").list(9, "x"))[1]
    assert "no list" in train("{}")[1]
