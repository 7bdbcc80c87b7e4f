"""`site install`: over a provisioned kit, again, after a kill, on a renewed kit; never over what it must not touch."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from fedscan.federation import kits, refusals, site_certificates, site_preflight, site_scope
from fedscan.federation.byte_log import ByteLog
from fedscan.federation.places import PlacesError, site_places
from fedscan.federation.site_install import Choices, InstallError, install
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.limits import Limits
from fedscan.privacy.policy import Policy
from fedscan.privacy.site_file import Site
from fedscan.privacy.site_init import init, policy_with

POLICY = policy_with(["min_patients=10", "max_delta=1e-3", "max_epsilon=3"])


def errors(kit: Path) -> list[str]:
    return [one.text for one in site_preflight.check(kit, network=False) if one.level == "error"]


def spend(site: Site) -> float:
    """Charges a round, as a job does; the epsilon that is spent then."""
    event = Event(noise_multiplier=3.0, sample_rate=0.25, steps=10, unit="patient")
    ledger = site.open_ledger()
    patients = frozenset(p["id"] for p in json.loads((site.store / "manifest.json").read_text())["patients"])
    ledger.reserve(Charge("1" * 32, "2" * 64, 0, "3" * 64, event, patients))
    return site.open_ledger().epsilon(1e-3)


def test_a_kit_as_it_was_sent_refuses_every_job(kit: Path) -> None:
    with pytest.raises(PlacesError):
        site_places(site_scope.properties(kit / "local"))
    assert not (kit / "local/site.json").exists()


def test_install_lays_all_that_is_the_hospitals(kit: Path, store: Path) -> None:
    done = install(kit, Choices(store=store, policy=POLICY, limits=Limits(cores=2)))
    assert done.site.name == "hosp-a"
    assert done.kit.project == "fedscan-local"
    site = Site.open(kit)
    assert site.policy() == POLICY
    assert site.limits.cores == 2
    assert site.open_ledger().events() == []
    private = kit.with_name("kit.private")
    assert site.path.resolve() == private / "site.json"
    assert site_places(site_scope.properties(kit / "local")).site_file == private / "site.json"
    assert errors(kit) == []
    for path in [private, *private.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_kit_that_was_started_too_early_can_be_installed(kit: Path, store: Path) -> None:
    """Its gate and guard noted in KIT/local what they had no state folder for."""
    refusals.note(kit / "local", "deploy", ["site.json cannot be read"])
    log = ByteLog("parent")
    log.write_to(kit / "local")
    log.count("task/register", "server", 100)
    install(kit, Choices(store=store, policy=POLICY))
    assert errors(kit) == []


def test_a_second_time_nothing_is_changed(installed: Path, store: Path) -> None:
    def state() -> dict[str, bytes]:
        roots = (installed, installed.with_name("kit.private"))
        return {str(p): p.read_bytes() for root in roots for p in sorted(root.rglob("*")) if p.is_file()}

    before = state()
    again = install(installed, Choices())
    assert (again.done, again.warnings) == ((), ())
    assert install(installed, Choices(store=store)).done == ()
    assert state() == before


def test_what_is_asked_otherwise_the_second_time_is_told_and_not_done(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    before = Site.open(installed)
    choices = Choices(store=tmp_path / "other", policy=Policy(policy_version=1), limits=Limits(cores=9))
    again = install(installed, choices)
    assert [text.split(":")[0] for text in again.warnings] == ["store", "limits", "policy"]
    assert Site.open(installed).file == before.file
    assert Site.open(installed).policy() == before.policy()


def test_open_modes_are_closed(kit: Path, store: Path) -> None:
    """A kit that was unpacked under a common umask."""
    for path in [kit, *kit.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
    done = install(kit, Choices(store=store, policy=POLICY))
    assert "closed to group and others" in done.done[0]
    assert errors(kit) == []
    assert os.access(kit / "startup/start.sh", os.X_OK)


def test_killed_at_any_write_it_is_ended_by_the_same_command(provisioned: Path, store: Path, tmp_path: Path) -> None:
    """The process ends at its n-th rename, before and after it, as kill -9 would end it."""
    choices = Choices(store=store, policy=POLICY)
    ended = kills = 0
    while not ended:
        kills += 1
        kit = tmp_path / f"kit{kills}"
        shutil.copytree(provisioned / "hosp-a", kit)
        store.with_name("store.ledger").unlink(missing_ok=True)
        ended = os.waitstatus_to_exitcode(_die_at_rename(kit, choices, (kills + 1) // 2, before=kills % 2 == 1)) == 0
        if not ended and not site_scope.properties(kit / "local"):
            assert errors(kit) != []
        key = kit.with_name(f"{kit.name}.private") / "ledger.key"
        had = key.read_bytes() if key.exists() else None
        install(kit, choices)
        assert errors(kit) == []
        assert had in (None, key.read_bytes())
        assert Site.open(kit).open_ledger().events() == []
        left = [p.name for root in (kit, key.parent) for p in root.rglob("*.part")]
        assert left == [], f"killed at {kills}"
    assert kills > 12


def _die_at_rename(kit: Path, choices: Choices, number: int, before: bool) -> int:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    rename, count = os.replace, 0

    def dying(*arguments: object, **named: object) -> None:
        nonlocal count
        count += 1
        if count == number and before:
            os._exit(9)
        rename(*arguments, **named)  # type: ignore[arg-type]
        if count == number:
            os._exit(9)

    os.replace = dying  # type: ignore[assignment]
    try:
        install(kit, choices)
    finally:
        os._exit(0)


def test_a_kit_that_a_link_names_is_the_same_kit(kit: Path, store: Path) -> None:
    link = kit.with_name("current")
    link.symlink_to(kit)
    install(link, Choices(store=store, policy=POLICY))
    assert kit.with_name("kit.private").is_dir()
    assert errors(link) == []
    assert install(kit, Choices()).done == ()


def test_two_at_once(kit: Path, store: Path) -> None:
    home = kit.with_name("kit.private")
    home.mkdir()
    with FileLock(home / ".install.lock"), pytest.raises(InstallError, match="another `fedscan site install`"):
        install(kit, Choices(store=store))


@pytest.fixture(scope="module")
def renewed(provisioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of hosp-a that the operator's next provisioning makes: a new certificate under the same root."""
    workspace = tmp_path_factory.mktemp("renewal") / "ws"
    shutil.copytree(provisioned.parent.parent, workspace)
    state = workspace / provisioned.parent.name / "state/cert.json"
    # As the builder forgets a participant whose certificate is near its end (federation/kit_renewal.py).
    state.write_text(
        json.dumps({name: entry for name, entry in json.loads(state.read_text()).items() if name != "hosp-a"})
    )
    kits.run_provisioner(workspace)
    return workspace / provisioned.parent.name / "prod_01/hosp-a"


@pytest.fixture
def new_kit(renewed: Path, provisioned: Path, tmp_path: Path) -> Path:
    assert (renewed / "startup/client.crt").read_bytes() != (provisioned / "hosp-a/startup/client.crt").read_bytes()
    shutil.copytree(renewed, tmp_path / "renewed")
    return tmp_path / "renewed"


def test_a_renewed_kit_in_the_old_ones_place_keeps_ledger_and_policy(
    installed: Path, new_kit: Path, put_kit: Callable[[Path], Path]
) -> None:
    spent = spend(Site.open(installed))
    kit = put_kit(new_kit)
    done = install(kit, Choices())
    assert len(done.done) == 2  # the link and the scope
    site = Site.open(kit)
    assert site.open_ledger().epsilon(1e-3) == spent > 0
    assert site.policy() == policy_with(["min_patients=10", "max_delta=1e-3"])
    assert errors(kit) == []


def test_a_renewed_kit_unpacked_over_the_old_one(installed: Path, new_kit: Path) -> None:
    spent = spend(Site.open(installed))
    shutil.copytree(new_kit, installed, dirs_exist_ok=True)
    assert site_scope.properties(installed / "local") == {}
    assert len(install(installed, Choices()).done) == 1
    assert Site.open(installed).open_ledger().epsilon(1e-3) == spent
    assert errors(installed) == []


def test_a_renewed_kit_elsewhere(installed: Path, new_kit: Path, store: Path) -> None:
    spent = spend(Site.open(installed))
    with pytest.raises(InstallError, match="another ledger charges for this store already"):
        install(new_kit, Choices(store=store))
    install(new_kit, Choices(private=installed.with_name("kit.private")))
    assert Site.open(new_kit).open_ledger().epsilon(1e-3) == spent
    assert errors(new_kit) == []


def test_a_kit_of_another_project_is_not_laid_over(
    installed: Path, tmp_path: Path, put_kit: Callable[[Path], Path], make_kits: Callable[..., Path]
) -> None:
    other = make_kits(tmp_path / "ws", name="others") / "hosp-a"
    kit = put_kit(other)
    with pytest.raises(
        InstallError, match="installed for the federation 'fedscan-local', and now holds a kit of 'others'"
    ):
        install(kit, Choices())
    assert site_scope.properties(kit / "local") == {}
    private = kit.with_name("kit.private")
    elsewhere = tmp_path / "second"
    shutil.copytree(other, elsewhere)
    with pytest.raises(InstallError, match="--second-federation"):
        install(elsewhere, Choices(private=private))
    install(elsewhere, Choices(private=private, second_federation=True))
    assert Site.open(elsewhere).file.ledger == private / "ledger.jsonl"


def test_a_kit_of_the_same_name_under_another_root(
    installed: Path, provisioned_again: Path, put_kit: Callable[[Path], Path]
) -> None:
    """A stranger can call a project as ours is called; the root's key is what tells them apart."""
    kit = put_kit(provisioned_again / "hosp-a")
    with pytest.raises(InstallError, match="another root key signed it") as caught:
        install(kit, Choices())
    digits = str(caught.value).split("got ")[1][:64]
    with pytest.raises(InstallError, match="another root key"):
        install(kit, Choices(new_root="0" * 64))
    install(kit, Choices(new_root=digits))
    assert errors(kit) == []
    assert install(kit, Choices()).done == ()


def test_a_kit_of_another_site(installed: Path, provisioned: Path, put_kit: Callable[[Path], Path]) -> None:
    kit = put_kit(provisioned / "hosp-b")
    with pytest.raises(InstallError, match="this is the site 'hosp-a', and the kit is of 'hosp-b'"):
        install(kit, Choices())


@pytest.mark.parametrize(
    ("name", "word"),
    [("localhost", "the server's kit"), ("lead@fedscan.local", "admin kit"), (".", "no kit of a site")],
)
def test_kits_that_are_no_sites(provisioned: Path, store: Path, name: str, word: str) -> None:
    with pytest.raises(InstallError, match=word):
        install(provisioned / name, Choices(store=store))
    assert not (provisioned / f"{name}.private").exists()


def test_a_kit_that_was_not_made_strict(tmp_path: Path, store: Path, make_kits: Callable[..., Path]) -> None:
    kit = make_kits(tmp_path / "ws", strict=False) / "hosp-a"
    with pytest.raises(InstallError, match="not a strict one"):
        install(kit, Choices(store=store))
    assert not kit.with_name("hosp-a.private").exists()


@pytest.mark.parametrize("what", ["local/custom", "startup/x__resources.json", "startup/start.sh"])
def test_a_kit_in_which_the_lead_sends_more(kit: Path, store: Path, what: str) -> None:
    if what == "local/custom":
        (kit / what).mkdir()
    else:
        with (kit / what).open("a") as file:
            file.write("{}")
    with pytest.raises(InstallError, match=what):
        install(kit, Choices(store=store))


def test_a_policy_that_came_with_the_kit_is_not_the_hospitals(kit: Path, store: Path, tmp_path: Path) -> None:
    sent = init(tmp_path / "sent", name="hosp-a", store=store, policy=policy_with(["require_dp=false"]))
    shutil.move(sent.site.path.parent, kit / "local/private")
    content = json.loads((kit / "local/private/site.json").read_text())
    places = {name: f"private/{content[name]}" for name in ("ledger", "key", "policy", "anchor", "state")}
    (kit / "local/site.json").write_text(json.dumps(content | places))
    (kit / "local/site.json").chmod(0o600)
    with pytest.raises(InstallError, match=r"local/private: NVFlare may read it"):
        install(kit, Choices(store=store))
    shutil.move(kit / "local/private", kit / "private")
    places = {name: f"../private/{content[name]}" for name in ("ledger", "key", "policy", "anchor", "state")}
    (kit / "local/site.json").write_text(json.dumps(content | places))
    with pytest.raises(InstallError, match="in the kit itself: if it came with the kit, delete it"):
        install(kit, Choices(store=store))


def test_properties_that_came_with_the_kit(kit: Path, store: Path) -> None:
    path = kit / "local/privacy.json"
    content = json.loads(path.read_text())
    content["scopes"][0]["properties"] = {"no_policy": True, "store": str(store), "state": "/tmp/x"}
    path.write_text(json.dumps(content))
    with pytest.raises(InstallError, match="set already, and not by this command"):
        install(kit, Choices(store=store))


def test_a_store_that_is_none(kit: Path, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="--store"):
        install(kit, Choices())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InstallError, match="fedscan prepare"):
        install(kit, Choices(store=tmp_path / "empty"))
    assert not kit.with_name("kit.private").exists()


def test_an_expired_kit(kit: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_certificates, "days_left", lambda *_: -3)
    with pytest.raises(InstallError, match=r"3 days ago"):
        install(kit, Choices(store=store))


def test_what_site_init_made_is_taken_over(kit: Path, store: Path) -> None:
    made = init(kit, name="hosp-a", store=store, policy=POLICY)
    done = install(kit, Choices())
    assert Site.open(kit).path == made.site.path
    assert Site.open(kit).policy() == POLICY
    assert len(done.done) == 2  # the federation is noted, the scope names site.json
    assert errors(kit) == []


def test_federations_that_cannot_be_read(installed: Path) -> None:
    (installed.with_name("kit.private") / "federations.json").write_text("[]")
    with pytest.raises(InstallError, match=r"federations\.json cannot be understood"):
        install(installed, Choices())
