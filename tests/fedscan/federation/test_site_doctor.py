"""`site doctor`: lines as NVFlare 2.9 and our own code really wrote them; and never a word of them comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedscan.federation import refusals, site_symptoms
from fedscan.federation.site_doctor import Diagnosis, Seen, diagnose
from fedscan.federation.site_kit import KitError
from fedscan.privacy.site_file import Site

Command = Callable[..., tuple[int, str]]
STAMP = "{time:%Y-%m-%d %H:%M:%S},974"
REAL = {
    "no-server": "{stamp} - conn_manager - ERROR - Connector [CH00001 ACTIVE http://localhost:54245] failed with "
    "exception ClientConnectorError: <class 'aiohttp.client_exceptions.ClientConnectorError'>",
    "server-hangs-up": "{stamp} - conn_manager - ERROR - Connector [CH00001 ACTIVE http://localhost:54245] failed with "
    "exception ServerDisconnectedError: <class 'aiohttp.client_exceptions.ServerDisconnectedError'>",
    "certificate": "{stamp} - FedscanCertificate - ERROR - this site's certificate does not hold now "
    "(startup/client.crt holds from 2026-11-30 07:15 to 2027-11-25 07:15 UTC, and the clock says 2026-11-30 06:18): "
    "waiting for the right time, or for a renewed kit in this one's place",
    "displaced": "{stamp} - conn_manager - INFO - Connection [CN0000{n} Not Connected] is closed PID: 9564",
    "heartbeat-lost": "{stamp} - CoreCell - ERROR - [ME=hosp-b O=hosp-b D=server F=hosp-b T=server CH=task "
    "TP=heart_beat SCH=? STP=? SEQ={n}] cannot send to 'server': target_unreachable",
    "port-taken": "{stamp} - tcp_driver - ERROR - 9140: Error binding to  127.0.0.1:35151: <class 'OSError'>",
    "class-refused": "{stamp} - ComponentPathAuthorizer - ERROR - Component 'nvflare.app_common.x.Y' at config path "
    "'components.#0' is not in allow_list",
    "type-refused": "{stamp} - Cell - ERROR - Type 'torch.Tensor' is not allowed. ",
    "scope-refused": "{stamp} - AppDeployer - ERROR - privacy scope 'open' is not allowed",
    "code-refused": "{stamp} - AppAuthzService - ERROR - BYOC not permitted",
    "signature-refused": "{stamp} - DeployProcessor - ERROR - app app_client does not pass signature verification",
    "no-login": "The client could not register to server. ",
    "not-set-up": "{stamp} - DiffusionExecutor - ERROR - [identity=a] - this site is not set up for the job: OSError",
    "not-judged": "{stamp} - validator - ERROR - a job could not be judged: PermissionError",
    "blocked-unnoted": "{stamp} - OutboundGuard - ERROR - an answer was blocked, and the reason could not be noted",
    "job-process-died": "{stamp} - JobExecutor - INFO - run (1): child worker process finished with RC -9",
    "memory": "MemoryError",
    "disk-full": "OSError: [Errno 28] No space left on device",
    "no-package": "/usr/bin/python3: Error while finding module specification for "
    "'nvflare.private.fed.app.client.client_train' (ModuleNotFoundError: No module named 'nvflare')",
    "bad-file": "Exception Type: <class 'json.decoder.JSONDecodeError'>",
    "start-failed": "Execute exception: <class 'TypeError'>",
    "gave-up": "System is in trouble and unable to start the task!!!!!",
    "second-start": "There seems to be one instance, pid=4711, running.",
}


def write(kit: Path, name: str, *lines: str, at: datetime | None = None) -> None:
    time = at or datetime.now()
    text = "\n".join(line.format(stamp=STAMP.format(time=time), n=number) for number, line in enumerate(lines, 2))
    with (kit / name).open("a") as log:
        log.write(text + "\n")


def names(found: Diagnosis) -> list[str]:
    return [seen.symptom.name for seen in found.seen]


@pytest.mark.parametrize("name", REAL)
def test_a_real_line_is_its_symptom(kit: Path, name: str) -> None:
    write(kit, "console.log", *[REAL[name]] * site_symptoms.BY_NAME[name].least)
    (seen,) = diagnose(kit).seen
    assert seen.symptom.name == name
    assert seen.symptom.cause
    assert seen.symptom.cure


def test_every_symptom_of_a_log_has_its_line_here() -> None:
    assert {one.name for one in site_symptoms.LOGS} == set(REAL)


def test_a_healthy_log_has_none(kit: Path) -> None:
    write(
        kit,
        "log.txt",
        "{stamp} - FederatedClient - INFO - Successfully registered client:hosp-a for project fedscan-local.",
        "{stamp} - conn_manager - INFO - Connection [CN00002 Not Connected] is closed PID: 9564",
        "{stamp} - JobExecutor - INFO - run (1): child worker process finished with RC 0",
    )
    assert diagnose(kit).seen == ()


PARENT, JOB = 5595, 5701


def connection(number: int, pid: int, way: str, peer: str, *, ends: bool) -> list[str]:
    """What NVFlare writes of one: it tells the other end when it begins alone."""
    name, where = f"CN{number:05d}", f"127.0.0.1:51550 {way} 127.0.0.1:60129 SSL {peer}"
    begun = f"{{stamp}} - conn_manager - INFO - Connection [{name} {where}] is created: PID: {pid}"
    return [begun, f"{{stamp}} - conn_manager - INFO - Connection [{name} Not Connected] is closed PID: {pid}"][
        : 1 + ends
    ]


def test_jobs_that_end_are_no_displacement(kit: Path) -> None:
    """Each ends three connections: two of its own process, and the parent's to it."""
    write(kit, "log.txt", *connection(2, PARENT, "=>", "localhost", ends=False))
    for number in range(3, 9):
        job, pid = kit / f"0f0e0d0c-1111-2222-3333-44445555666{number}", JOB + number
        job.mkdir()
        of_job = [
            *connection(2, pid, "=>", "hosp-a", ends=True),
            *connection(3, pid, "=>", "localhost", ends=True),
        ]
        of_parent = connection(number, PARENT, "<=", "hosp-a", ends=True)
        write(job, "log.txt", *of_job)
        write(kit, "log.txt", *of_parent)
        write(kit, "console.log", *of_job, *of_parent)
    assert diagnose(kit).seen == ()
    (kit / "log.txt").rename(kit / "log.txt.1")
    assert diagnose(kit).seen == ()


def test_a_connection_to_the_server_that_ends_again_and_again_is(kit: Path) -> None:
    for number in range(2, 6):
        assert names(diagnose(kit)) == []
        write(kit, "log.txt", *connection(number, PARENT, "=>", "localhost", ends=True))
    (seen,) = diagnose(kit).seen
    assert (seen.symptom.name, seen.count, seen.places) == ("displaced", 4, {"the site"})


def test_a_server_that_is_started_again_each_day_displaces_nobody(kit: Path) -> None:
    for number in range(2, 8):
        at = datetime.now() - timedelta(days=number - 1)
        write(kit, "log.txt", *connection(number, PARENT, "=>", "localhost", ends=True), at=at)
    assert diagnose(kit).seen == ()


def test_one_line_in_three_logs_is_one_line_and_times_are_told(kit: Path) -> None:
    early, late = datetime.now() - timedelta(hours=3), datetime.now() - timedelta(hours=1)
    for name in ("log.txt", "error_log.txt", "console.log"):
        write(kit, name, REAL["no-server"], at=early)
        write(kit, name, REAL["no-server"], at=late)
    (seen,) = diagnose(kit).seen
    assert seen.count == 2
    assert seen.first is not None
    assert seen.last is not None
    assert abs((seen.first - early.astimezone(UTC)).total_seconds()) < 1
    assert abs((seen.last - late.astimezone(UTC)).total_seconds()) < 1


def test_old_lines_are_left_out_and_jobs_logs_are_read(kit: Path) -> None:
    write(kit, "log.txt", REAL["no-server"], at=datetime.now() - timedelta(days=8))
    job = kit / "0f0e0d0c-1111-2222-3333-444455556666"
    job.mkdir()
    write(job, "log.txt", REAL["not-set-up"])
    found = diagnose(kit)
    assert names(found) == ["not-set-up"]
    assert found.seen[0].places == {"a job"}
    assert "no-server" in names(diagnose(kit, days=9))


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("budget: the next round would bring epsilon to 8.2 at delta 0.0001, policy max_epsilon is 8", "budget"),
        ("rounds: the plan has 9999, policy max_rounds is 1000", "policy"),
        ("privacy.noise_multiplier: the plan has 0.1, policy min_noise_multiplier is 0.3", "policy"),
        ("privacy: the plan has no differential privacy, policy require_dp demands it", "policy"),
        ("submitter: 'x@y' (certificate 1234...) is not in policy allowed_submitters", "submitter"),
        ("approval: nobody at this site approved plan 1234", "approval"),
        ("submission: its nonce was used before at this site: submit the job anew", "submission"),
        ("quiet_hours: nothing is trained here in 07:30-18:00 (local time): ask again later", "hours"),
        ("store: 12 patients to train on, policy min_patients is 100", "store"),
        ("ledger: entry 3 was edited", "ledger"),
        ("ledger: it cannot be read or written: No space left on device", "disk"),
        ("this site cannot read or write: No space left on device", "disk"),
        ("policy cannot be read: No such file or directory (/x/policy.json)", "files"),
        ("the answer is not ready at its time: let the plan's privacy.answer_after_s be longer", "late"),
        ("round 0 was not trained within its deadline: the plan's privacy.answer_after_s is too short", "late"),
        ("task: it belongs to another plan than the one deployed here", "task"),
        ("admin/admin: taken out: body/__fobs_data__/data/body", "question"),
        ("admin/admin: it is on no list", "otherwise"),
        ("the DXO is no WEIGHT_DIFF", "door"),
        ("job: app app_client does not pass signature verification", "job"),
        ("KeyError", "otherwise"),
    ],
)
def test_refusals_by_kind(installed: Path, reason: str, name: str) -> None:
    refusals.note(Site.open(installed).state, "round", [reason])
    assert names(diagnose(installed)) == [f"refused-{name}"]


def test_what_the_gate_kept_in(installed: Path) -> None:
    refusals.note(Site.open(installed).state, "gate", ["aux/other: it is on no list"])
    refusals.note(installed / "local", "deploy", ["site.json cannot be read: No such file or directory (x)"])
    assert set(names(diagnose(installed))) == {"refused-door", "refused-files"}


SECRETS = ("Huber^Anna", "PID-0815-4711", "1949-03-12")


def test_nothing_of_a_log_or_a_reason_comes_out(installed: Path, command: Command) -> None:
    """Patient text in every field of every log and refusal that there is, in hostile forms too."""
    text = " ".join(SECRETS)
    lines = [line.replace("is not allowed", f"is not allowed {text}") + f" {text}" for line in REAL.values()]
    lines += [f"{{stamp}} - {SECRETS[0]} - ERROR - {text}", f"{{stamp}} - Trainer - ERROR - {text}", text]
    lines += [
        f"{{stamp}} - AppDeployer - ERROR - privacy scope '{text}' is not allowed",
        f"Type '{text}' is not allowed",
    ]
    for log in ("log.txt", "error_log.txt", "console.log", "log.txt.1"):
        write(installed, log, *(lines * 4))
    job = installed / "0f0e0d0c-1111-2222-3333-444455556666"
    job.mkdir()
    write(job, "error_log.txt", *lines)
    for phase in ("deploy", "round", SECRETS[1]):
        refusals.note(Site.open(installed).state, phase, [text, f"store: {text}", f"policy {text}"], run_id=SECRETS[1])
    for arguments in ((), ("--json",)):
        code, output = command("site", "doctor", installed, *arguments)
        assert code == 1
        assert "other-errors" in output
        assert "refused-store" in output
        assert not any(part in output for secret in SECRETS for part in re.split(r"[\^-]", secret) if len(part) > 2)


def test_logs_that_are_no_text_and_very_long_lines(installed: Path) -> None:
    (installed / "log.txt").write_bytes(os.urandom(100_000) + b"\n" + b"MemoryError" * 200_000)
    (Site.open(installed).state / "refusals.jsonl").write_bytes(
        b'{"time": 5}\n[]\n\xff\n{"time": "x", "reasons": []}\n'
    )
    assert names(diagnose(installed)) == ["memory"]


PROCESS = "import sys; print('up', flush=True); sys.stdin.read()"


def test_processes(installed: Path, command: Command) -> None:
    assert diagnose(installed).process == "does not run"
    (installed / "daemon_pid.fl").write_text(f"{os.getpid()}\n")
    assert diagnose(installed).process == "died and is being started again"
    (installed / "daemon_pid.fl").write_text("999999999\n")
    assert diagnose(installed).process == "does not run"
    write(installed, "console.log", REAL["gave-up"])
    assert diagnose(installed).process == "gave up"
    running = []
    try:
        for module, more in (
            ("client_train", ["-s", "fed_client.json"]),
            ("worker_process", ["-w", "x", "-n", "0f0e0d0c-1111-2222-3333-444455556666"]),
        ):
            words = ["-m", f"nvflare.private.fed.app.client.{module}", "-m", str(installed), *more]
            process = subprocess.Popen(
                [sys.executable, "-c", PROCESS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            running.append(process)
            assert process.stdout is not None
            process.stdout.readline()
        found = diagnose(installed)
        assert (found.process, found.jobs) == ("runs", ("0f0e0d0c-1111-2222-3333-444455556666",))
        code, output = command("site", "doctor", installed)
        assert code == 0, output
        assert "hosp-a: the site's process runs, with 1 jobs at work" in output
    finally:
        for process in running:
            process.communicate(timeout=30)


def test_json_and_newest_first(kit: Path, command: Command) -> None:
    write(kit, "log.txt", REAL["no-server"], at=datetime.now() - timedelta(hours=3))
    write(kit, "log.txt", REAL["port-taken"])
    report = json.loads(command("site", "doctor", kit, "--json")[1])
    assert [one["name"] for one in report["findings"]] == ["port-taken", "no-server"]
    assert set(report["findings"][0]) == {"name", "count", "first", "last", "where", "cause", "cure"}


def test_no_kit(provisioned: Path) -> None:
    with pytest.raises(KitError):
        diagnose(provisioned)
    assert Seen(site_symptoms.OTHER_ERROR).last is None
