"""`fedscan store forget`: a signed record first, then the store without them; spent stays spent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctslices.files import write_whole
from ctslices.manifest import Manifest
from ctslices.pseudonym import create_key
from ctslices.store import MANIFEST, SliceStore, manifest_bytes, read_manifest, write_store
from fedscan.privacy.event import Event
from fedscan.privacy.ledger import Charge
from fedscan.privacy.site_file import Site
from fedscan.training.site_store import store_facts

Command = Callable[..., tuple[int, str]]
IDS = [f"PAT-{number:03d}" for number in range(60)]


@pytest.fixture
def site(command: Command, tmp_path: Path) -> Site:
    """Its ledger was charged once for everybody in the store, whose pseudonyms are those of IDS."""
    key = create_key(tmp_path / "store.key")
    patient = np.repeat(np.arange(60), 2)
    write_store(tmp_path / "store", np.zeros((120, 16, 16), np.int16), patient, splits=["train"] * 60)
    whole = read_manifest(tmp_path / "store")
    pairs = zip(whole.patients, IDS, strict=True)
    records = tuple(p.model_copy(update={"id": key.pseudonym("patient", raw)}) for p, raw in pairs)
    changed = whole.model_copy(update={"patients": records, "key_fingerprint": key.fingerprint})
    manifest = Manifest.model_validate(changed.model_dump())
    write_whole(tmp_path / "store" / MANIFEST, manifest_bytes(manifest), mode=0o600)
    settings = ("--set", "min_patients=50", "--set", "max_delta=0.001")
    command("site", "init", tmp_path / "site", "--name", "a", "--store", tmp_path / "store", *settings)
    opened = Site.open(tmp_path / "site")
    event = Event(noise_multiplier=3.0, sample_rate=0.25, steps=10, unit="patient")
    everybody = frozenset(record.id for record in records)
    opened.open_ledger().reserve(Charge("1" * 32, "2" * 64, 0, "3" * 64, event, everybody))
    return opened


def ids_file(tmp_path: Path, *rows: str) -> Path:
    (tmp_path / "ids.txt").write_text("\n".join(rows) + "\n")
    return tmp_path / "ids.txt"


def test_who_is_forgotten_is_gone_on_record_and_what_was_spent_stays(
    command: Command, site: Site, tmp_path: Path, private_job: Path
) -> None:
    spent = site.open_ledger().events()
    everybody = store_facts(site.store).trained  # type: ignore[union-attr]
    code, output = command(
        "store", "forget", site.store, "--patients", ids_file(tmp_path, IDS[0], IDS[7]), "--site", site.path, "--json"
    )
    assert code == 0, output
    assert json.loads(output)["patients"] == 2
    left = store_facts(site.store).trained  # type: ignore[union-attr]
    assert len(everybody - left) == 2
    ledger = site.open_ledger()
    assert ledger.removed == everybody - left
    assert ledger.events() == spent
    assert command("policy", "check", private_job, "--site", site.path)[0] == 0


def test_a_row_that_names_nobody_changes_nothing(command: Command, site: Site, tmp_path: Path) -> None:
    before = site.file.ledger.read_bytes(), (site.store / MANIFEST).read_bytes()
    arguments = ("store", "forget", site.store, "--patients", ids_file(tmp_path, IDS[0], "PAT-00"), "--site", site.path)
    code, output = command(*arguments)
    assert code == 1
    assert "named by row 2" in output
    assert "PAT-00" not in output
    assert (site.file.ledger.read_bytes(), (site.store / MANIFEST).read_bytes()) == before
    assert command(*arguments, "--skip-unknown")[0] == 0
    assert len(SliceStore.open(site.store).manifest.patients) == 59


def test_stopped_between_record_and_store_the_judge_refuses_until_it_is_run_again(
    command: Command, site: Site, tmp_path: Path, private_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("store", "forget", site.store, "--patients", ids_file(tmp_path, IDS[3]), "--site", site.path)

    def stopped(*_: object) -> None:
        raise OSError(5, "Input/output error", "store")

    with monkeypatch.context() as patch:
        patch.setattr("ctslices.forget.forget", stopped)
        assert command(*arguments)[0] == 1
    assert len(SliceStore.open(site.store).manifest.patients) == 60
    code, output = command("policy", "check", private_job, "--site", site.path)
    assert code == 1
    assert "in it again" in output
    records = len(site.open_ledger().lines)
    assert command(*arguments)[0] == 0
    assert len(site.open_ledger().lines) == records, "one record is enough"
    assert command("policy", "check", private_job, "--site", site.path)[0] == 0
    assert command(*arguments)[0] == 0, "forgetting twice is no mistake"


def test_a_store_that_lost_patients_without_a_record_is_refused(
    command: Command, site: Site, private_job: Path
) -> None:
    from ctslices.forget import forget

    forget(site.store, [SliceStore.open(site.store).manifest.patients[0].id])
    code, output = command("policy", "check", private_job, "--site", site.path)
    assert code == 1
    assert "gone without a removal record" in output


def test_without_the_stores_key_pseudonyms_alone_are_known(command: Command, site: Site, tmp_path: Path) -> None:
    pseudonym = SliceStore.open(site.store).manifest.patients[5].id
    (tmp_path / "store.key").unlink()
    arguments = ("store", "forget", site.store, "--site", site.path, "--patients")
    code, output = command(*arguments, ids_file(tmp_path, IDS[5]))
    assert code == 1
    assert "pseudonyms alone are known" in output
    assert command(*arguments, ids_file(tmp_path, pseudonym))[0] == 0


def test_a_ledger_that_cannot_be_trusted_forgets_nobody(command: Command, site: Site, tmp_path: Path) -> None:
    site.file.anchor.unlink()
    code, output = command("store", "forget", site.store, "--patients", ids_file(tmp_path, IDS[0]), "--site", site.path)
    assert code == 1
    assert output.startswith("error: ")
    assert len(SliceStore.open(site.store).manifest.patients) == 60


def test_who_is_gone_without_a_record_is_forgotten_by_the_same_command(
    command: Command, site: Site, tmp_path: Path, private_job: Path
) -> None:
    """A removal record that was lost with the ledger's disk is made again, though the store lost them long ago."""
    package, anchor = tmp_path / "backup.tar", tmp_path / "apart.anchor"
    assert command("site", "backup", package, "--site", site.path)[0] == 0
    arguments = ("store", "forget", site.store, "--patients", ids_file(tmp_path, IDS[0], IDS[7]), "--site", site.path)
    assert command(*arguments)[0] == 0
    shutil.copy(site.file.anchor, anchor)
    shutil.rmtree(site.path.parent)
    again = ("site", "restore", package, "--into", site.path.parent, "--anchor", anchor, "--store", site.store)
    assert "1 removal records are among them" in command(*again)[1]
    assert "2 of the patients that the ledger knows are gone" in command("site", "check", "--site", site.path)[1]
    code, output = command(*arguments)
    assert code == 0, output
    assert len(Site.open(site.path).open_ledger().removed) == 2
    assert len(SliceStore.open(site.store).manifest.patients) == 58
    code, output = command("site", "check", "--site", site.path)
    assert code == 0, output


def test_slices_that_a_stopped_command_left_are_told(
    command: Command, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new store is in place already, so that the judge is content; the forgotten slices lie beside it still."""
    arguments = ("store", "forget", site.store, "--patients", ids_file(tmp_path, IDS[3]), "--site", site.path)

    def stopped(place: Path, *_: object, **__: object) -> None:
        if place.exists():
            raise OSError(5, "Input/output error", "store")

    with monkeypatch.context() as patch:
        patch.setattr("ctslices.swap.shutil.rmtree", stopped)
        assert command(*arguments)[0] == 1
    assert len(SliceStore.open(site.store).manifest.patients) == 59
    left = "store: what a stopped `prepare` or `store forget` left lies beside it"
    assert left in command("site", "check", "--site", site.path)[1]
    assert command(*arguments)[0] == 0
    assert left not in command("site", "check", "--site", site.path)[1]
