"""Known lines of NVFlare's and our own logs, and of refusals: what each means at a hospital, and the cure.

Patterns alone are ever shown: a log may hold what a library quoted of its input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True)
class Symptom:
    """`pattern` is searched in one line; the symptom is told from `least` lines on, where these lie within `within`."""

    name: str
    pattern: re.Pattern[str]
    cause: str
    cure: str
    least: int = field(default=1)
    within: timedelta = field(default=timedelta.max)


def _log(name: str, pattern: str, cause: str, cure: str, least: int = 1, within: timedelta = timedelta.max) -> Symptom:
    return Symptom(name, re.compile(pattern), cause, cure, least, within)


_CHECK = "fedscan site check KIT says which, with the cure"
LOGS = (
    _log(
        "no-server",
        r"failed with exception (ClientConnectorError|ClientConnectorDNSError|ConnectionRefusedError|TimeoutError)",
        "the server could not be reached: it does not run, or network, firewall or DNS are in the way",
        "fedscan site check KIT dials it; ask the operator. The site goes on by itself when it is back",
    ),
    _log(
        "server-hangs-up",
        r"failed with exception (ServerDisconnected|ClientConnectorCertificate|ClientConnectorSSL|SSL)Error",
        "the server is there and ended the connection: this site's certificate has expired or was revoked, or one of "
        "the two belongs to another federation",
        _CHECK,
    ),
    _log(
        "certificate",
        r"this site's certificate does not hold now",
        "the site waits: its certificate has ended, or does not hold yet by this machine's clock",
        "fedscan site check KIT says which: turn on NTP, or lay a renewed kit in this one's place; the site then goes "
        "on by itself",
    ),
    _log(
        "displaced",
        r"Connection \[CN\d+ Not Connected\] is closed|already registered with another token",
        "connections to the server ended again and again. Most often a second process with the same kit (a second "
        "start, a copied kit, NVFlare's own preflight-check): the server keeps the name for the one that it hears, and "
        "closes the other's connections; else the network breaks them off",
        "make sure that one process alone runs with this kit, on this and any other machine, then restart it; if "
        "nobody here started a second one, tell the operator: the kit may be stolen",
        least=4,
        within=timedelta(minutes=10),  # a server that is started again now and then ends connections, too
    ),
    _log(
        "heartbeat-lost",
        r"CH=task TP=heart_beat.*(no connection to server|target_unreachable)",
        "heartbeats did not reach the server; after 60 s it takes the site for gone",
        "see no-server and displaced; if neither shows, look at the network",
        least=2,
    ),
    _log(
        "port-taken",
        r"Error binding to |PASSIVE [^]]{1,200}\] failed with exception OSError",
        "the loopback port for the site's own job processes is taken: no job can start",
        _CHECK,
    ),
    _log(
        "no-login",
        r"could not register to server|Login failed",
        "the server did not let the site in",
        "fedscan site check KIT; ask the operator whether the site is disabled there",
    ),
    _log(
        "class-refused",
        r"is not in allow_list",
        "a job named a class that this site does not allow: it was not made by `fedscan job new`, or for another "
        "version of Fedscan",
        "nothing is to be done here; tell the lead. If the version is the reason, install the one that the lead names",
    ),
    _log(
        "type-refused",
        r"Type '[^']{1,200}' is not allowed",
        "a message of the server holds a type that is not read here: another version of Fedscan or NVFlare is there",
        "compare versions with the operator (`fedscan --version`)",
    ),
    _log(
        "scope-refused",
        r"privacy scope '.{0,200}' is not allowed",
        "a job asked for another privacy scope",
        "tell the lead",
    ),
    _log(
        "code-refused",
        r"BYOC not permitted",
        "a job brought its own code, which this site does not run",
        "tell the lead",
    ),
    _log(
        "signature-refused",
        r"does not pass signature verification|unsigned job rejected|signature verification is required",
        "a job was not signed by a person of this federation, or was changed after it was signed",
        "tell the lead, with the time; if the lead did not submit then, tell the operator: somebody tries",
    ),
    _log(
        "not-set-up",
        r"this site is not set up for the job",
        "a job reached its process, and the site's own files were not fit for it",
        "fedscan site check KIT",
    ),
    _log(
        "not-judged",
        r"a job could not be judged",
        "a job arrived and could not be judged, so it was refused: most often the state folder cannot be written",
        "fedscan site check KIT (disk, owner)",
    ),
    _log(
        "blocked-unnoted",
        r"an answer was blocked, and the reason could not be noted",
        "the guard stopped an answer, and the state folder could not be written",
        "fedscan site check KIT (disk, owner)",
    ),
    _log(
        "job-process-died",
        r"child worker process finished with RC (?!0\b)-?\d+",
        "a job's process did not end as it should: it was killed, had no memory, or failed at its start",
        "see the other findings of the same time; the kernel's log (`journalctl -k`) names processes killed for memory",
    ),
    _log(
        "memory",
        r"MemoryError|Cannot allocate memory|out of memory",
        "memory ran out",
        "give the machine more, or set limits.memory_gib in site.json, so that the trainer alone ends",
    ),
    _log("disk-full", r"No space left on device|Errno 28", "a disk was full", "make room; fedscan site clean KIT"),
    _log(
        "no-package",
        r"No module named '(nvflare|fedscan|torch)",
        "`python3` of the start script is not the one that Fedscan is installed in",
        "put Fedscan's environment first on PATH where the site is started (docs/hospital-it.md)",
    ),
    _log(
        "bad-file",
        r"JSONDecodeError|ConfigError|Client config error",
        "a file of the kit cannot be read, so the site does not start",
        _CHECK,
    ),
    _log(
        "start-failed",
        r"Execute exception:",
        "the site ended while it started",
        "fedscan site check KIT; see the other findings of the same time",
    ),
    _log(
        "gave-up",
        r"System is in trouble and unable to start",
        "the site ended five times within five minutes and is not started any more",
        "mend what fedscan site check KIT says, then start it again",
    ),
    _log(
        "second-start",
        r"There seems to be one instance",
        "the start script was called while the site ran",
        "nothing, where the site runs; else remove KIT/daemon_pid.fl and start it",
    ),
)


def _refusal(name: str, pattern: str, cause: str, cure: str) -> Symptom:
    return Symptom(f"refused-{name}", re.compile(pattern), cause, cure)


_ASK = (
    "fedscan policy check JOB --site KIT says it with numbers; fedscan site approve --list --site KIT shows the plans"
)
REFUSALS = (
    _refusal(
        "disk",
        r"No space left on device|Disk quota exceeded",
        "a disk was full: nothing is trained that cannot be noted",
        "make room (fedscan site clean KIT); the next round is trained without a restart",
    ),
    _refusal(
        "budget",
        r"^budget: ",
        "the policy's budget for these patients has no room for another round",
        "fedscan budget --site KIT shows what was spent",
    ),
    _refusal(
        "submitter", r"^submitter: ", "somebody submitted who may not, or whose certificate does not verify", _ASK
    ),
    _refusal("approval", r"^approval: ", "a plan waits for a person here to approve it", _ASK),
    _refusal(
        "job",
        r"^job: ",
        "a job that was not signed by a person of this federation, was changed after it was signed, brought code, or "
        "came under a name or in an archive that leads elsewhere",
        "tell the lead, with the time; if the lead did not submit then, tell the operator: somebody tries",
    ),
    _refusal(
        "submission",
        r"^(submission|time): |^the submission",
        "a submission had expired, was sent a second time, or was changed; or a clock is wrong",
        "let the lead submit anew (`fedscan job renew`); fedscan site check KIT compares the clocks",
    ),
    _refusal(
        "hours",
        r"^quiet_hours: ",
        "a job came within the quiet hours of site.json",
        "nothing, or change limits.quiet_hours",
    ),
    _refusal("store", r"^store: |the store changed", "the store is not as policy and ledger want it", _CHECK),
    _refusal("ledger", r"^ledger: |ledger entry|ledger does not contain", "the ledger is not in order", _CHECK),
    _refusal(
        "files",
        r"^policy(: | (cannot|could|is no|is longer|must hold))|site's key|site\.json|^privacy\.json",
        "the site's own files are not in order",
        _CHECK,
    ),
    _refusal(
        "policy",
        r"^(rounds|privacy|privacy\.\w+|noise|answers): |policy ",
        "a plan asks for more than the policy gives",
        _ASK,
    ),
    _refusal(
        "late",
        r"not ready at its time|not trained within its deadline|still loading",
        "a round was not trained within the plan's time (privacy.answer_after_s): the charge is spent, nothing left",
        "free the machine, give limits.cores more; let the lead plan a longer time",
    ),
    _refusal(
        "trainer",
        r"^(the )?trainer|^Trainer",
        "the trainer ended: memory (limits.memory_gib), a broken store, or the machine",
        "see the other findings of the same time; fedscan site check KIT",
    ),
    _refusal(
        "task",
        r"^task: |the task belongs|received model|^round \d+ lies|record is malformed",
        "a message of the server was not one of the job's",
        "tell the lead; compare versions with the operator (`fedscan --version`)",
    ),
    _refusal(
        "question",
        r"^admin/admin: taken out: ",
        "a command asked for more than a site tells (the operator's `nvflare system status` does), and got no answer",
        "nothing is broken; if it comes often, ask the operator who asks",
    ),
    _refusal(
        "door",
        r"^(form|answer): |^taken out: |^the reply|^the DXO|^a reply|^it was changed after",
        "something that must not leave was stopped at the door",
        "tell the lead: a job, or the software of this site, is not what it should be",
    ),
)
OTHER_REFUSAL = Symptom(
    "refused-otherwise",
    re.compile(""),
    "reasons that this command does not know",
    "read them here, in refusals.jsonl of the state folder; they stay at the hospital",
)
OTHER_ERROR = Symptom(
    "other-errors",
    re.compile(""),
    "error lines that this command does not know",
    "read them here, in error_log.txt; do not send logs away as they are",
)
BY_NAME = {symptom.name: symptom for symptom in (*LOGS, *REFUSALS, OTHER_REFUSAL, OTHER_ERROR)}
