"""Provisioning again: who and what is new gets a kit, certificates near their end are renewed, all else stays."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.provision import prepare_builders, prepare_project
from nvflare.lighter.provisioner import Provisioner

from fedscan.federation import consortium, kit_renewal
from fedscan.federation.kit_renewal import RenewalError

Description = dict[str, Any]
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def project_file(repository: Path) -> Path:
    return repository / "site_configs" / "project.yml"


@pytest.fixture
def description(project_file: Path) -> Description:
    """The project with fewer people: keys take time."""
    read = consortium.read_project(project_file)
    kept = ("server", "client", "lead")
    read["participants"] = [p for p in read["participants"] if p["type"] in kept or p.get("role") in kept]
    return read


@pytest.fixture
def provision(description: Description, tmp_path: Path) -> Run:
    """Provisions the project, with more participants, in this process: the folder of that run's kits."""

    def run(*more: Description, refused: str = "") -> Path:
        grown = description | {"participants": copy.deepcopy([*description["participants"], *more])}
        mask = os.umask(0o022)
        os.umask(mask)
        try:
            ctx = Provisioner(str(tmp_path), prepare_builders(grown)).provision(prepare_project(grown))
        finally:
            os.umask(mask)
        errors = "; ".join(ctx.get_errors())
        assert bool(ctx.get(CtxKey.BUILD_ERROR)) == bool(refused), errors
        assert refused in errors
        return Path(ctx.get_result_location() or "")

    return run


def _files(folder: Path, without: str = "-") -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(f"{without}/")}


def test_a_new_site_or_person_touches_nobody_elses_kit(provision: Run) -> None:
    first = provision()
    before = _files(first)
    site = {"name": "hosp-d", "type": "client", "org": "hospital_d"}
    person = {"name": "l@x.org", "type": "admin", "org": "coordinator", "role": "lead"}
    second = provision(site)
    third = provision(site, person)
    assert [folder.name for folder in (first, second, third)] == ["prod_00", "prod_01", "prod_02"]
    assert _files(first) == before
    assert _files(second, without="hosp-d") == before
    assert _files(third, without="l@x.org") == _files(second)
    assert (third / "l@x.org" / "startup" / "client.crt").is_file()


def test_the_options_of_nvflares_command_do_the_same(project_file: Path, tmp_path: Path) -> None:
    nvflare = Path(sys.executable).with_name("nvflare")

    def run(*options: str) -> str:
        command = [nvflare, "provision", "-p", project_file, "-w", tmp_path, "--force", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    run()
    before = _files(tmp_path / "ct-consortium" / "prod_00")
    (tmp_path / "d.yml").write_text(yaml.safe_dump({"name": "hosp-d", "org": "hospital_d"}))
    (tmp_path / "u.yml").write_text(yaml.safe_dump({"name": "l@x.org", "org": "coordinator", "role": "lead"}))
    said = run("--add-client", "d.yml")
    assert "kits, new: hosp-d" in said
    assert "kits, changed" not in said
    assert _files(tmp_path / "ct-consortium" / "prod_01", without="hosp-d") == before
    assert "kits, new: l@x.org" in run("--add-user", "u.yml")
    assert _files(tmp_path / "ct-consortium" / "prod_02", without="l@x.org") == before


def _ending(state: Path, pem: str, days: float) -> str:
    """The same certificate of the same key, signed by the root for so many days more."""
    root_key = serialization.load_pem_private_key(
        json.loads((state / "cert.json").read_text())["root_pri_key"].encode(), password=None
    )
    old = x509.load_pem_x509_certificate(pem.encode())
    end = datetime.now(UTC) + timedelta(days=days)
    builder = (
        x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number)
        .not_valid_before(end - (old.not_valid_after_utc - old.not_valid_before_utc))
        .not_valid_after(end)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(root_key, hashes.SHA256())  # type: ignore[arg-type]
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _end_in(state: Path, name: str, days: float) -> None:
    """Gives a participant in the state (or the root) a certificate that ends in so many days."""
    content = json.loads((state / "cert.json").read_text())
    if name == "root":
        content["root_cert"] = _ending(state, content["root_cert"], days)
    else:
        content[name]["cert"] = _ending(state, content[name]["cert"], days)
    (state / "cert.json").write_text(json.dumps(content))


def _days_left(kit: Path, name: str = "client.crt") -> float:
    return kit_renewal.days_left((kit / "startup" / name).read_bytes())


def test_a_certificate_near_its_end_is_renewed_and_nobody_elses(provision: Run, tmp_path: Path) -> None:
    first = provision()
    _end_in(tmp_path / "ct-consortium" / "state", "hosp-b", 59)
    second = provision()
    assert _days_left(second / "hosp-b") > 359
    assert _days_left(second / "hosp-b", "server.crt") > 359
    key = "startup/client.key"
    assert (second / "hosp-b" / key).read_bytes() != (first / "hosp-b" / key).read_bytes()
    assert _files(second, without="hosp-b") == _files(first, without="hosp-b")
    root = x509.load_pem_x509_certificate((first / "hosp-b" / "startup" / "rootCA.pem").read_bytes())
    new = x509.load_pem_x509_certificate((second / "hosp-b" / "startup" / "client.crt").read_bytes())
    new.verify_directly_issued_by(root)


def test_one_with_time_left_is_not(provision: Run, tmp_path: Path) -> None:
    provision()
    _end_in(tmp_path / "ct-consortium" / "state", "hosp-b", 61)
    assert 60 < _days_left(provision() / "hosp-b") < 62


@pytest.mark.parametrize(("days", "kept"), [(59, False), (61, True)])
def test_a_listeners_certificate_is_renewed_near_its_end_alone(
    provision: Run, tmp_path: Path, days: float, kept: bool
) -> None:
    first = provision()
    listener = first / "hosp-a" / "startup" / "server.crt"
    listener.write_text(_ending(tmp_path / "ct-consortium" / "state", listener.read_text(), days))
    second = provision() / "hosp-a"
    assert ((second / "startup" / "server.crt").read_bytes() == listener.read_bytes()) == kept
    assert (_days_left(second, "server.crt") > 359) == (not kept)


def test_a_root_near_its_end_renews_nothing(provision: Run, tmp_path: Path) -> None:
    provision()
    _end_in(tmp_path / "ct-consortium" / "state", "root", 40)
    provision(refused="new root")
    assert not (tmp_path / "ct-consortium" / "prod_01").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"root_cert": 3}', '{"root_cert": "x"}', "{}"])
def test_a_broken_state_is_no_reason_for_new_keys(tmp_path: Path, content: str) -> None:
    (tmp_path / "cert.json").write_text(content)
    with pytest.raises(RenewalError, match="put back its copy"):
        kit_renewal.forget_ending(tmp_path, 60)
    assert (tmp_path / "cert.json").read_text() == content


def test_a_changed_port_changes_the_kits_that_name_it(
    provision: Run, description: Description, capsys: pytest.CaptureFixture[str]
) -> None:
    provision()
    next(p for p in description["participants"] if p["type"] == "server")["fed_learn_port"] = 443
    capsys.readouterr()
    provision()
    said = capsys.readouterr().out
    assert "kits, changed: fedscan.example.org, hosp-a, hosp-b, hosp-c, lead@fedscan.example.org" in said
