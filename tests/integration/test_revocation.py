"""Revocation in running federations: a lead's job and a site's part end with the next round, through real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fedscan.federation import job_folder, kits, local_run, processes, records, revocation
from fedscan.federation.audit_log import AuditLog
from fedscan.federation.local_run import Progress, RunError
from fedscan.privacy.site_file import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("hosp-a", "hosp-b")
ROUNDS = 12


class Run:
    """A run in which somebody is revoked once a round is done."""

    def __init__(self, folder: Path, template: Path, sites: dict[str, Path]) -> None:
        self.out, self.sites, self.list = folder / "RUN", sites, folder / "revocations.json"
        settings = ["model.preset=tiny", f"rounds={ROUNDS}", "training.local_steps=2", "training.batch_size=8"]
        job_folder.new(template, folder / "job", [*settings, "tries_per_round=2", "min_responses=1"])
        self.job = folder / "job"
        self.revoked_after: int | None = None

    def go(self, name: str, lay: Callable[[Path, Path], None]) -> None:
        def listen(progress: Progress) -> None:
            record = progress.record
            if record is None or record.event != "round" or self.revoked_after is not None:
                return
            [project] = (self.out / "federation").glob(f"attempt-*/{kits.PROJECT}")
            revocation.make(project / "state", [name], self.list)
            lay(project / "prod_00", self.list)
            self.revoked_after = record.round

        local_run.run(self.job, self.sites, self.out, listen=listen)

    def refused(self, folder: Path | None = None) -> str:
        """What a chained log, which must hold, says of refusals: the server's, or that in a site's state folder."""
        [server] = self.out.glob(f"federation/attempt-*/{kits.PROJECT}/prod_00/{kits.SERVER}")
        found = AuditLog(folder or server).verify()
        assert found.ok, found.faults
        return "\n".join(f"{event.who}: {event.text}" for event in found.events if event.what == "refused")

    def records(self) -> Iterable[records.RoundRecord]:
        return records.read(self.out / "rounds.jsonl")


@pytest.fixture
def run(tmp_path: Path, repository: Path, make_site: Callable[..., Path]) -> Run:
    sites = {name: make_site(tmp_path, name, "require_dp=false") for name in SITES}
    return Run(tmp_path, repository / "jobs" / "ct_fedavg", sites)


def at_server(kits_folder: Path, file: Path) -> None:
    held = revocation.Revocations(
        kits_folder / kits.SERVER / "local" / revocation.FILE, kits_folder / kits.SERVER / "startup" / "rootCA.pem"
    )
    held.lay(file.read_text())


def test_a_revoked_leads_job_ends_at_the_server(run: Run) -> None:
    with pytest.raises(RunError, match="submitter is revoked by list 1"):
        run.go(kits.LEAD, at_server)
    last = [record for record in run.records() if record.event == "round"][-1]
    assert last.round is not None
    assert run.revoked_after is not None
    assert last.round <= run.revoked_after + 1, "a round may have begun before the list was laid"
    assert processes.belonging_to(run.out) == []
    assert "submitter is revoked by list 1" in run.refused()


def test_a_site_that_was_told_by_hand_ends_it_even_where_the_server_goes_on(run: Run) -> None:
    def at_one_site(kits_folder: Path, file: Path) -> None:
        state = Site.open(run.sites["hosp-a"]).state
        held = revocation.Revocations(state / revocation.FILE, kits_folder / "hosp-a" / "startup" / "rootCA.pem")
        held.lay(file.read_text())

    run.go(kits.LEAD, at_one_site)
    assert run.revoked_after is not None
    later = [r for r in run.records() if r.event == "round" and (r.round or 0) > run.revoked_after + 1]
    assert later
    assert all(not record.sites["hosp-a"].answered and record.sites["hosp-b"].answered for record in later)
    state = Site.open(run.sites["hosp-a"]).state
    assert "submitter: revoked by list 1" in (state / "refusals.jsonl").read_text()
    assert "submitter: revoked by list 1" in run.refused(state)
    assert not (Site.open(run.sites["hosp-b"]).state / "refusals.jsonl").exists()


def test_a_revoked_site_is_not_asked_again_and_others_learn_of_it(run: Run) -> None:
    run.go("hosp-b", at_server)
    assert run.revoked_after is not None
    later = [r for r in run.records() if r.event == "round" and (r.round or 0) > run.revoked_after + 1]
    assert later
    for record in later:
        assert record.asked == ("hosp-a",)
        assert "revoked by list 1" in (record.sites["hosp-b"].refused or "")
    assert "hosp-b: answer, round" in run.refused()
    assert "revoked by list 1" in run.refused()
    held = Site.open(run.sites["hosp-a"]).state / revocation.FILE
    assert held.read_text() == run.list.read_text(), "it came with a task"
