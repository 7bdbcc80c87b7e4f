"""Judges, counts and releases the frames of one process of a site."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedscan.federation import gate_tables, refusals
from fedscan.federation.audit_log import AuditError, AuditLog
from fedscan.federation.byte_log import INSIDE, PARENT, ByteLog
from fedscan.federation.gate_answer import PassedAnswer
from fedscan.federation.gate_frames import BlockedError, Frame, Parts, frame_bytes
from fedscan.federation.gate_rules import is_listed, judge, place
from fedscan.federation.site_folder import state_of

SERVER = "server"
SUBMIT_TOPIC = "submit_update"
_MOST_NOTES = 200
"""Of one process: nobody fills a site's disk by sending."""
_MOST_STRANGE = 40
"""Channels on no list that are counted by name: the log's line is written anew with each message."""
Release = Callable[[list[Frame]], None]


class Door:
    """Called from all threads of the process that send, for each frame, with the function that sends it.

    What it notes before `keep_in` says where is kept in memory: NVFlare tells a component its workspace late.
    """

    def __init__(self, passed: Callable[[], PassedAnswer | None]) -> None:
        self._passed = passed
        self._noted_answer: PassedAnswer | None = None
        self._lock = threading.RLock()
        self._parts = Parts()
        self._log: ByteLog | None = None
        self._local: Path | None = None
        self._constants: dict[str, Any] = {}
        self._waiting: dict[str, list[tuple[str, int]]] = {}
        self._notes: dict[tuple[str, str], None] = {}
        self._strange: set[str] = set()

    def keep_in(self, local: Path) -> None:
        """What is noted goes into the state folder of the site with this KIT/local. Raises OSError."""
        with self._lock:
            if self._local is not None:
                return
            self._local = local
            for where, reason in self._notes:
                self._write_note(where, reason)
            if self._log is not None:
                self._log.write_to(state_of(local))

    def __call__(self, frame: Frame, release: Release) -> None:
        """Releases what may go. Raises BlockedError for what may not, and OSError where it cannot be counted."""
        with self._lock:
            log = self._open_log(frame)
            allowed = [frame] if frame.kind == "data" and frame.stays() else self._judged(frame, log)
            for one in allowed:
                self._count(one, log)
        if allowed:
            release(allowed)

    def note(self, where: str, reason: str) -> None:
        """Kind and topic of what stayed here; each once."""
        with self._lock:
            if (where, reason) not in self._notes and len(self._notes) < _MOST_NOTES:
                self._notes[where, reason] = None
                self._write_note(where, reason)

    def _open_log(self, frame: Frame) -> ByteLog:
        if self._log is None:
            self._log = ByteLog(frame.job or PARENT)
            if self._local is not None:
                self._log.write_to(state_of(self._local))
        return self._log

    def _judged(self, frame: Frame, log: ByteLog) -> list[Frame]:
        try:
            return self._parts.add(frame, self._judge) if frame.is_part else self._judge([frame])
        except BlockedError as error:
            log.count(self._place(frame), SERVER, frame_bytes(frame), blocked=True)
            self.note(self._place(frame), str(error))
            raise

    def _judge(self, frames: list[Frame]) -> list[Frame]:
        if frames[0].job:
            for name in gate_tables.CONSTANT_HEADERS:
                if name in frames[0].headers:
                    self._constants.setdefault(name, frames[0].headers[name])
        passed = self._passed()
        judgement = judge(frames, passed, self._constants)
        if frames[0].topic == SUBMIT_TOPIC and passed is not None and passed is not self._noted_answer:
            self._noted_answer = passed
            self._audit_answer(passed, frames[0].job)
        for path in judgement.taken_out:
            self.note(self._place(frames[0]), f"taken out: {path}")
        return judgement.frames

    def _place(self, frame: Frame) -> str:
        """Channel and topic; of those that are on no list, the first few."""
        where = place(frame)
        if not is_listed(frame) and where not in self._strange:
            if len(self._strange) >= _MOST_STRANGE:
                return "others"
            self._strange.add(where)
        return where

    def _count(self, frame: Frame, log: ByteLog) -> None:
        """Where a connection leads is known after its handshake alone."""
        size = frame_bytes(frame)
        if not frame.peer:
            self._waiting.setdefault(frame.connection, []).append((place(frame), size))
            return
        to = INSIDE if frame.peer.partition(".")[0] == frame.site else SERVER
        for where, earlier in self._waiting.pop(frame.connection, []):
            log.count(where, to, earlier)
        log.count(place(frame), to, size)

    def _audit_answer(self, passed: PassedAnswer, job: str) -> None:
        """Before it leaves. Raises OSError."""
        record = passed.record
        text = f"round {record.get('round_number')} of run {record.get('run_id')}, plan {record.get('plan_digest')}"
        if self._local is not None:
            with contextlib.suppress(AuditError):  # as in refusals.note
                AuditLog(state_of(self._local)).append("answer", text, job=job)

    def _write_note(self, where: str, reason: str) -> None:
        if self._local is not None:
            refusals.note(state_of(self._local), "gate", [f"{where}: {reason}"])
