"""What crosses from a site to the server under differential privacy, read byte by byte where the server receives it.

Every field of every message is accounted for: a field that is in no table here fails the test, and so does a value
that is not of its kind. Two sites of different patients, pictures and numbers of both take part; whatever is no
identity, time, tensor or keyed hash must be the same for both.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
import safetensors.torch
import torch
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix

from fedscan.federation import job_folder, records
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.privacy.accounting import epsilon
from fedscan.privacy.event import Event
from fedscan.training.weights import Weights, digest, shapes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("hosp-a", "hosp-b")
ANSWER_AFTER_S = 25.0
HELLO, READY, PING, PONG, DATA = 4, 5, 2, 3, 1
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
CLASS = r"nvflare\.[\w.]+|torch\.Tensor"


@dataclass
class Wire:
    """One kind of message of one site: every path in it, with all values that were seen."""

    values: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))


def frames(tap: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    for path in sorted(tap.glob("*.frames")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            end = data.index(b"\n", at) + 1
            head = json.loads(data[at:end])
            at = end + head["bytes"]
            yield head, data[end:at]


def leaves(node: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a decoded message with its path; list positions are `[]`."""
    if isinstance(node, dict):
        yield from () if node else [(f"{path}/{{}}", "")]
        for key, value in node.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(node, list):
        yield from () if node else [(f"{path}[]", "")]
        for value in node:
            yield from leaves(value, f"{path}[]")
    else:
        yield path, node


def decode(body: bytes) -> Iterator[tuple[str, Any]]:
    """A payload as NVFlare writes it: an object, then (for what is fetched later) references."""
    assert body[:1] == b"d", body[:40]
    end = 10 + int.from_bytes(body[2:10], "big")
    yield from leaves(msgpack.unpackb(body[10:end]), "body")
    if rest := body[end:]:
        assert rest[:1] == b"e", rest[:40]
        assert len(rest) == 10 + int.from_bytes(rest[2:10], "big")
        yield from leaves(json.loads(rest[26:]), "reference")  # 16 bytes before it are a random identity


class Heard:
    """All that the server's parent process received from the sites, by site, process and topic."""

    def __init__(self, tap: Path) -> None:
        self.kinds: dict[tuple[str, str, str], Wire] = defaultdict(Wire)
        self.times: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.tensors: dict[str, list[Weights]] = defaultdict(list)
        self._parts: dict[tuple[str, int], list[tuple[int, bytes]]] = defaultdict(list)
        for head, frame in frames(tap):
            site, _, job = head["from"].partition(".")
            if site in SITES:
                self._frame(site, "job" if job else "parent", head["time"], frame)

    def _frame(self, site: str, process: str, time: float, frame: bytes) -> None:
        prefix = Prefix.from_bytes(frame)
        start = PREFIX_LEN + prefix.header_len
        if prefix.type in (HELLO, READY):
            return self._note(site, process, "hello", leaves(msgpack.unpackb(frame[start:]), "body"))
        if prefix.type in (PING, PONG):
            assert len(frame) == PREFIX_LEN
            return None
        assert prefix.type == DATA
        headers = msgpack.unpackb(frame[PREFIX_LEN:start])
        topic = str(headers.get("sm__tp") or headers.get("cn__topic"))
        self._note(site, process, topic, leaves(headers, "head"))
        body = self._whole(site, headers, frame[start:])
        self.times[site, topic].append(time)
        if body:
            self._note(site, process, topic, self._without_tensors(site, decode(body)))
        return None

    def _whole(self, site: str, headers: dict[str, Any], part: bytes) -> bytes:
        """A long payload comes in numbered parts."""
        if headers.get("sm__dt") not in (1, 2):
            return part
        parts = self._parts[site, headers["sm__id"]]
        parts.append((headers["sm__sq"], part))
        return b"".join(p for _, p in sorted(parts)) if headers["sm__dt"] == 2 else b""

    def _without_tensors(self, site: str, found: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Takes the tensors out, to be compared as a whole."""
        taken: Weights = {}
        for path, value in found:
            if path == "body/data[]" and isinstance(value, bytes):
                taken |= safetensors.torch.load(value)
            else:
                yield path, value
        if taken:
            self.tensors[site].append(taken)

    def _note(self, site: str, process: str, topic: str, found: Iterator[tuple[str, Any]]) -> None:
        for path, value in found:
            self.kinds[site, process, topic].values[path].add(value)


IDENTITY = {
    r"head/(cn__(from|to|origin|destination)|client_name|cn)": r"(hosp-[ab]|server)(\.JOB)?",
    r"head/cn__route\[\]\[\]": r"hosp-[ab](\.JOB)?|TIME",
    r"head/(__token__|cn__req_id|sm__ri|nonce|cn__msg_root_id)": r"UUID|",
    r"head/__token_signature__": r"[A-Za-z0-9+/=]{344}",
    r"head/(cn__send_time|sm__id)": r"TIME|COUNT",
}
TRANSPORT = {
    r"head/cn__(channel|topic|msg_type|payload_encoding|return_code)": r"[\w:.]{1,64}",
    r"head/(sm__(ch|tp|pe))": r"[\w:.]{1,64}",
    r"head/(cn__(optional|reply_expected|secure)|sm__(op|rs))": r"True|False",
    r"head/(cn__payload_len|sm__(dt|os|sq|sz|cs|ws|ai))": r"SIZE",
    r"head/(sm__(rw|rt))": r"TIME|SIZE",
    r"head/(ssid|project_name|client_type|nvflare_version)": r"NA|fedscan-local|regular|2\.9\.0",
    r"head/client_ip": r"[0-9.]{7,15}",
    r"head/federation_protocol_version": r"1",
    r"head/job_ids(\[\])?(\[\])?": r"JOB|",
    r"(body|reference)(/.*)?/(__fobs_type__|__fobs_dc__)": CLASS,
}
CONTEXT = {
    r"body/.*(__client_name__|__fqsn__|__identity_name__)(/value)?": r"hosp-[ab]",
    r"body/.*(__current_job_id__|__run_num__)(/value)?": r"JOB|",
    r"body/.*__is_leaf__(/value)?": r"True",
    r"body/.*__peer_ctx__/__fobs_data__\[\](/__\w+__/mask)?": r"0|None|",
    r"body/.*__topic__": r"__\w+__",
}
ANSWER = {
    r"body/__fobs_data__/__headers__/(__audit_event_id__|__msg_root_id__|(__cookie_jar__/)?__task_id__)": r"UUID",
    r"body/__fobs_data__/__headers__/(__content_type__|__task_name__|__cookie_jar__/__workflow__)": r"DXO|train|fedavg",
    r"body/__fobs_data__/__headers__/__cookie_jar__/contribution_round": r"[01]",
    r"body/__fobs_data__/__headers__/__rc__": REFUSED_BY_POLICY,
    r"body/__fobs_data__/DXO/kind/__fobs_data__": r"WEIGHT_DIFF",
    r"body/__fobs_data__/DXO/meta/fedscan/(plan_digest|model_digest|ledger/mac)": r"[0-9a-f]{64}",
    r"body/__fobs_data__/DXO/meta/fedscan/run_id": r"[0-9a-f]{32}",
    r"body/__fobs_data__/DXO/meta/fedscan/round_number": r"[01]",
    r"body/__fobs_data__/DXO/meta/fedscan/protocol": r"1",
    r"body/__fobs_data__/DXO/meta/fedscan/weight": r"1\.0",
    r"body/__fobs_data__/DXO/meta/fedscan/ledger/count": r"\d+",
    r"body/__fobs_data__/DXO/meta/fedscan/loss": r"None",
    r"body/__fobs_data__/DXO/data/net\.[\w.]+/__fobs_data__/data": r"T\d+",
    r"body/__fobs_data__/DXO/data/net\.[\w.]+/__fobs_data__/type": r"ref",
    r"reference/fqcn": r"hosp-[ab]\.JOB",
    r"reference/ref_id": r"UUID",
}
OTHERS = {
    r"body/(endpoint_name|fqcn)": r"hosp-[ab](\.JOB)?",
    r"body/timestamp": r"TIME",
    r"body/__fobs_data__/cn": r"hosp-[ab]",
    r"body/__fobs_data__/cert": r"(?s)b'-----BEGIN CERTIFICATE-----.*",
    r"body/__fobs_data__/signature": r"(?s)b.*",
    r"body/__fobs_data__/site_config/\{\}": r"",
    r"body/__fobs_data__/__headers__/(last_task_id|__task_id__)": r"UUID",
    r"body/__fobs_data__/data/(id|topic)": r"UUID|reply(_[\w.]+)?",
    r"body/__fobs_data__/data/headers(/\{\}|/_rtnCode)": r"_ok|",
    r"body/__fobs_data__/data/body": r"Start the client app\.\.\.|deployed app_client to hosp-[ab]",
    r"body/__fobs_data__/data/body/__fobs_data__/__headers__/_is_resource_enough": r"True",
    r"body/__fobs_data__/data/body/__fobs_data__/__headers__/_resource_reserve_token": r"UUID",
    r"body/((confirm|cancel)(_capable|_expected)?|status)": r"success|True|ok|eof",
    r"body/confirm_nonce": r"[0-9a-f]{32}",
    r"body/ref_id": r"UUID",
    r"body/state/(count|start)": r"SIZE",
    r"body/(job_id|code|reason)": r"JOB|0|None",
    r"body/__fobs_data__/__headers__/__rc__": r"OK",
    r"body/\{\}": r"",
}
TOPICS = {
    ("parent", "hello"),
    ("parent", "challenge"),
    ("parent", "register"),
    ("parent", "heart_beat"),
    ("parent", "admin"),
    ("parent", "report_job_failure"),
    ("parent", "bye"),
    ("job", "hello"),
    ("job", "bye"),
    ("job", "__sync_runner__"),
    ("job", "__job_heartbeat__"),
    ("job", "__task_check__"),
    ("job", "get_task"),
    ("job", "submit_update"),
    ("job", "download_service__download"),
    ("job", "download_service__:download_service__download"),
    ("job", "sm__ACK"),
    ("job", "aux_communication:fedscan.run_complete"),
    ("job", "aux_communication:__end_run__"),
}


def shown(value: object) -> str:
    """The value with what differs from run to run named by its kind."""
    if isinstance(value, float) or (isinstance(value, int) and value > 10**12):
        return "TIME" if not (isinstance(value, float) and value < 1000.0) else str(value)
    text = str(value)
    job = re.sub(rf"(server|hosp-[ab])\.{UUID}", r"\1.JOB", text)
    return job


def fits(value: object, wanted: str) -> bool:
    text = shown(value)
    kinds = {"UUID": UUID, "JOB": UUID, "TIME": r"TIME", "SIZE": r"-?\d+|\d+\.\d+", "COUNT": r"\d+"}
    pattern = re.sub(r"\bUUID\b|\bTIME\b|\bSIZE\b|\bCOUNT\b", lambda m: f"(?:{kinds[m.group()]})", wanted)
    pattern = re.sub(r"(?<![.\w])JOB\b", f"(?:{UUID})", pattern)
    return re.fullmatch(pattern, text) is not None


@pytest.fixture(scope="module")
def heard(
    tmp_path_factory: pytest.TempPathFactory,
    lab: Callable[..., Any],
    make_site: Callable[..., Path],
    private_settings: Callable[..., list[str]],
    repository: Path,
) -> tuple[Heard, Path, Path]:
    """Two rounds; hosp-b's budget takes the first alone. The sites differ in all that a patient changes."""
    folder = tmp_path_factory.mktemp("wire")
    event = Event(noise_multiplier=1.0, sample_rate=0.25, steps=2, unit="patient")
    budget = (epsilon([event], 1e-3) + epsilon([event] * 2, 1e-3)) / 2
    sites = {
        "hosp-a": make_site(folder, "hosp-a"),
        "hosp-b": make_site(folder, "hosp-b", f"max_epsilon={budget}", patients=17),
    }
    job = folder / "job"
    settings = private_settings(*SITES, answer_after_s=ANSWER_AFTER_S)
    job_folder.new(repository / "jobs" / "ct_fedavg", job, settings, list(SITES))
    with lab(folder / "lab", sites) as running:
        assert running.run(job)["status"] == "FINISHED:COMPLETED"
        run = running.run_folder(job)
    return Heard(folder / "lab" / "tap"), run, job


def test_only_known_messages_cross(heard: tuple[Heard, Path, Path]) -> None:
    """No log, no event, no analytics, no file, no shell."""
    assert {(process, topic) for _, process, topic in heard[0].kinds} <= TOPICS
    assert {site for site, *_ in heard[0].kinds} == set(SITES)


def test_every_field_of_every_message_is_accounted_for(heard: tuple[Heard, Path, Path]) -> None:
    strange = []
    for (site, process, topic), wire in heard[0].kinds.items():
        table = IDENTITY | TRANSPORT | CONTEXT | (ANSWER if topic == "submit_update" else OTHERS)
        for path, values in wire.values.items():
            rules = [wanted for rule, wanted in table.items() if re.fullmatch(rule, path)]
            for value in values:
                if not any(fits(value, wanted) for wanted in rules):
                    strange.append(f"{site} {process} {topic} {path} = {str(value)[:80]!r}")
    assert strange == []


def test_nothing_of_an_honest_sites_messages_is_taken_out(heard: tuple[Heard, Path, Path]) -> None:
    """What NVFlare and we send is what the gate's tables know, to the byte: else its notes would hide an attack's."""
    notes = [json.loads(line) for path in heard[2].parent.rglob("refusals.jsonl") for line in path.open()]
    assert notes, "hosp-b's second round is refused"
    assert [note["reasons"] for note in notes if note["phase"] in ("gate", "door")] == []


def test_what_is_no_identity_time_or_hash_is_the_same_for_both_sites(heard: tuple[Heard, Path, Path]) -> None:
    """Sizes, counts, flags, codes: they follow from the plan and the protocol, not from who is at a site. hosp-b was
    asked twice and answered once, so rounds, and sizes of all messages of a kind together, differ."""
    loose = re.compile(
        r"head/(sm__os|sm__sz|cn__payload_len|cn__route.*|cn__send_time|sm__id)|body/timestamp|.*ledger/count|.*round.*"
    )
    code = "body/__fobs_data__/__headers__/__rc__"
    for topic in ("submit_update", "__task_check__", "get_task", "__job_heartbeat__", "__sync_runner__"):
        ours, theirs = (heard[0].kinds[site, "job", topic].values for site in SITES)
        assert set(theirs) - set(ours) <= {code}
        assert set(ours) <= set(theirs)
        for path in ours:
            if not loose.fullmatch(path):
                assert same(ours[path]) == same(theirs[path]), (topic, path)
    answers, mixed = (heard[0].kinds[site, "job", "submit_update"].values["head/sm__sz"] for site in SITES)
    assert answers < mixed, "an answer has one size at both sites"
    assert len(mixed) == 2, "and a refusal another"


def same(values: set[Any]) -> set[str]:
    """Without what identifies."""
    texts = (shown(value) for value in values)
    return {
        re.sub(rf"hosp-[ab]|{UUID}|[0-9a-f]{{64}}|[0-9a-f]{{32}}|[A-Za-z0-9+/=]{{344}}|T\d+", "*", text)
        for text in texts
    }


def test_the_tensors_are_the_answers_and_no_more(heard: tuple[Heard, Path, Path]) -> None:
    """hosp-a answered twice, hosp-b once; each transfer is one update of the plan's form, as the server recorded it."""
    told, run, job = heard
    form = shapes_of(job_folder.read_plan(job).model)
    recorded: dict[str, list[str]] = {site: [] for site in SITES}
    for record in records.effective_rounds(run / "rounds.jsonl"):
        for site, entry in record.sites.items():
            if entry.answered:
                recorded[site].append(str(entry.update_digest))
    assert {site: len(found) for site, found in told.tensors.items()} == {"hosp-a": 2, "hosp-b": 1}
    for site, transfers in told.tensors.items():
        for sent, wanted in zip(transfers, recorded[site], strict=True):
            assert len(sent) == len(form)
            named = dict(zip(sorted(form), (sent[f"T{k}"] for k in range(len(form))), strict=True))
            assert all(t.dtype == torch.float32 and t.shape == form[n].shape for n, t in named.items())
            assert digest(named) == wanted


def test_answers_and_the_refusal_leave_at_the_public_time(heard: tuple[Heard, Path, Path]) -> None:
    """From the moment at which a site has fetched the model to that at which it asks whether its reply is wanted."""
    told = heard[0]
    for site in SITES:
        fetched, ready = told.times[site, "download_service__download"], told.times[site, "__task_check__"]
        assert len(ready) == 2
        for at in ready:
            took = at - max(time for time in fetched if time < at)
            assert abs(took - ANSWER_AFTER_S) < 1.0
