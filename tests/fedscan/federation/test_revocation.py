"""Lists of who is revoked: signed with a really provisioned root key, of rising number, never to be got around."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedscan.cli.main import app
from fedscan.federation import kits, revocation
from fedscan.federation.kits import Federation
from fedscan.federation.places import ServerPlaces, SitePlaces
from fedscan.federation.revocation import RevocationError, RevocationList, Revocations
from fedscan.federation.server_revocations import ServerRevocations
from fedscan.federation.server_round import RunStoppedError

LEAD, SITE = kits.LEAD, "hosp-a"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("federation")
    server = ServerPlaces(run_folder=str(folder), shelf=folder)
    for name in ("other", "ours"):
        made = kits.provision(folder / name, {SITE: SitePlaces(site_file=folder / "site.json")}, server)
    return made


@pytest.fixture
def root_ca(federation: Federation) -> Path:
    return federation.kit(SITE) / "startup" / "rootCA.pem"


@pytest.fixture
def state(federation: Federation) -> Path:
    return federation.folder / kits.PROJECT / "state"


@pytest.fixture
def held(tmp_path: Path, root_ca: Path) -> Revocations:
    return Revocations(tmp_path / "held" / revocation.FILE, root_ca)


def made(state: Path, file: Path, *names: str) -> str:
    revocation.make(state, names, file)
    return file.read_text()


def test_whoever_is_named_is_revoked_until_a_certificate_of_later(
    state: Path, tmp_path: Path, held: Revocations
) -> None:
    now = datetime.now(UTC)
    assert held.reason(LEAD, now) is None
    first = held.lay(made(state, tmp_path / "list", LEAD))
    assert (first.number, set(first.revoked)) == (1, {LEAD})
    assert "list 1" in (held.reason(LEAD, now - timedelta(days=1)) or "")
    assert held.reason(LEAD, None) is not None, "an unknown time is no excuse"
    assert held.reason(LEAD, now + timedelta(minutes=1)) is None, "a new kit"
    assert held.reason(SITE, None) is None
    second = held.lay(made(state, tmp_path / "list", SITE))
    assert (second.number, set(second.revoked)) == (2, {LEAD, SITE})
    assert (tmp_path / "held" / revocation.FILE).stat().st_mode & 0o777 == 0o600


def test_an_older_list_changes_nothing_and_two_of_one_number_are_refused(
    state: Path, tmp_path: Path, held: Revocations
) -> None:
    old = made(state, tmp_path / "list", SITE)
    new = made(state, tmp_path / "list", LEAD)
    twin = made(state, tmp_path / "twin", SITE), made(state, tmp_path / "twin", SITE)
    held.lay(new)
    assert held.lay(old).number == 2
    assert held.reason(LEAD, None) is not None
    assert held.lay(new).number == 2
    with pytest.raises(RevocationError, match="two lists of number 2"):
        held.lay(twin[1])
    assert held.reason(LEAD, None) is not None


def _edited(text: str) -> str:
    outer = json.loads(text)
    outer["content"] = outer["content"].replace(LEAD, "nobody@fedscan.local")
    return json.dumps(outer)


FORGED: dict[str, Callable[[str], str]] = {
    "a name changed": _edited,
    "signature cut": lambda text: json.dumps(json.loads(text) | {"signature": "00"}),
    "a key more": lambda text: json.dumps(json.loads(text) | {"more": 1}),
    "half of it": lambda text: text[: len(text) // 2],
    "nothing": lambda _: "",
    "endless": lambda text: text + " " * revocation.MAX_BYTES,
}


@pytest.mark.parametrize("name", FORGED)
def test_what_the_root_did_not_sign_is_never_taken(name: str, state: Path, tmp_path: Path, held: Revocations) -> None:
    text = made(state, tmp_path / "list", LEAD)
    with pytest.raises(RevocationError):
        held.lay(FORGED[name](text))
    assert held.newest() is None


def test_another_federations_list_is_not_taken(federation: Federation, tmp_path: Path, held: Revocations) -> None:
    other = federation.folder.with_name("other") / kits.PROJECT / "state"
    with pytest.raises(RevocationError, match="not signed by this federation's root"):
        held.lay(made(other, tmp_path / "list", LEAD))


def test_a_damaged_list_at_the_site_excuses_nobody(state: Path, tmp_path: Path, held: Revocations) -> None:
    held.lay(made(state, tmp_path / "list", SITE))
    (tmp_path / "held" / revocation.FILE).write_text("{}")
    with pytest.raises(RevocationError):
        held.reason(LEAD, datetime.now(UTC))
    with pytest.raises(RevocationError):
        held.lay((tmp_path / "list").read_text())


def test_times_without_a_zone_are_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        RevocationList(number=1, revoked={LEAD: "2030-01-01T00:00:00"})


def test_a_name_without_a_certificate_and_a_folder_without_a_root_key_are_refused(state: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        revocation.make(state, ["lead@elsewhere.org"], tmp_path / "list")
    with pytest.raises(RevocationError, match="no root key"):
        revocation.make(tmp_path, [LEAD], tmp_path / "list")
    assert not (tmp_path / "list").exists()


class TestServer:
    @pytest.fixture
    def job(self, tmp_path: Path, federation: Federation) -> Path:
        from nvflare.lighter.utils import load_private_key_file, sign_folders

        folder = tmp_path / "job" / "app"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        startup = federation.kit(LEAD) / "startup"
        sign_folders(str(folder), load_private_key_file(startup / "client.key"), str(startup / "client.crt"))
        return folder

    def test_the_list_goes_out_and_revoked_sites_are_named(
        self, job: Path, state: Path, tmp_path: Path, root_ca: Path
    ) -> None:
        server = ServerRevocations(tmp_path, root_ca, job)
        assert server.now([SITE]).text is None
        text = made(state, tmp_path / revocation.FILE, SITE)
        known = server.now([SITE, "hosp-b"])
        assert known.text == text
        assert set(known.sites) == {SITE}

    def test_a_revoked_submitters_job_stops(self, job: Path, state: Path, tmp_path: Path, root_ca: Path) -> None:
        server = ServerRevocations(tmp_path, root_ca, job)
        made(state, tmp_path / revocation.FILE, LEAD)
        with pytest.raises(RunStoppedError, match="submitter is revoked by list 1"):
            server.now([SITE])

    def test_a_list_that_cannot_be_used_stops_it_too(self, job: Path, tmp_path: Path, root_ca: Path) -> None:
        (tmp_path / revocation.FILE).write_text("{}")
        with pytest.raises(RunStoppedError, match="no list of revocations"):
            ServerRevocations(tmp_path, root_ca, job).now([SITE])


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_commands_make_and_lay_a_list(federation: Federation, state: Path, tmp_path: Path) -> None:
    file, kit = tmp_path / "list.json", federation.kit(kits.SERVER)
    assert run("federation", "revoke", LEAD, "--state", state, "--list", file).exit_code == 0
    first = file.read_text()
    said = run("federation", "revoke", SITE, "--state", state, "--list", file, "--json")
    assert json.loads(said.stdout)["number"] == 2
    assert "list 2: 2 revoked" in run("server", "revoke", file, "--kit", kit).stdout
    assert (kit / "local" / revocation.FILE).read_text() == file.read_text()
    file.write_text(first)
    older = run("server", "revoke", file, "--kit", kit)
    assert older.exit_code == 1
    assert "newer than this one" in older.stderr
    assert "no certificate to 'x@y'" in run("federation", "revoke", "x@y", "--state", state, "--list", file).stderr
    assert "no startup/fed_client.json" in run("site", "revoke", file, "--kit", kit).stderr
    (kit / "local" / revocation.FILE).unlink()


def test_of_two_lists_laid_at_once_the_newer_stays(
    state: Path, tmp_path: Path, held: Revocations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends an old list with each task could else take a new one away while it is laid by hand."""
    file = tmp_path / "list"
    older, newer = made(state, file, LEAD), made(state, file, SITE)
    write = revocation.write_whole
    by_hand = threading.Thread(target=held.lay, args=(newer,))

    def slowly(*args: Any, **named: Any) -> None:
        if not by_hand.is_alive():
            by_hand.start()
            by_hand.join(0.5)
        write(*args, **named)

    monkeypatch.setattr(revocation, "write_whole", slowly)
    held.lay(older)
    by_hand.join(10.0)
    newest = held.newest()
    assert newest is not None
    assert newest.number == 2
