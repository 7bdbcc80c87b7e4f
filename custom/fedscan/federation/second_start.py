"""At the server: a site's name belongs to the process that has it, for as long as that process is heard.

NVFlare gives a name to whoever comes last with its certificate: the connection of the one before is closed, and its
login ends. Two starts of one kit then throw each other out for ever, and a copied kit takes a site's place unseen.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import msgpack
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessagePropKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.sfm.conn_manager import ConnManager
from nvflare.fuel.f3.sfm.constants import HandshakeKeys, Types
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.utils.admin_name_utils import is_valid_admin_client_name
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.server.client_manager import ClientManager

from fedscan.readable import readable

YOUNG_S = 15.0
"""A site sends a heartbeat every 10 s: one that was not heard for so long may be replaced."""
ASKED_S = 3.0
"""And it has at least so long to answer when it is asked whether it is there."""
_LOOK_S = 0.1

_asking = threading.Lock()
_asked: weakref.WeakKeyDictionary[Any, threading.Thread] = weakref.WeakKeyDictionary()
_log = logging.getLogger("FedscanSecondStart")
_process_frame_task = ConnManager.process_frame_task
_authenticated_client = ClientManager.authenticated_client


class SecondStart(FLComponent):  # type: ignore[misc]
    """Among the components of the server's KIT/local/resources.json. Takes no arguments.

    A newcomer under a name that has a connection waits until that connection closes or has been silent for YOUNG_S,
    and takes the name then; as soon as anything is heard over the old one, the newcomer's is closed. It tries again by
    itself. A login as a site counts over the connection of that site's name alone: NVFlare takes it over any, and ends
    the one before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names = Names()
        _install(self._names)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Nothing: it stands below NVFlare's events, which come after a name has changed hands."""


class Names:
    """Who waits for which name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[str] = set()

    def wait(self, name: str) -> bool:
        """Whether this newcomer may wait; False where another one does."""
        with self._lock:
            if name in self._waiting:
                return False
            self._waiting.add(name)
            return True

    def waited(self, name: str) -> None:
        """The next one may wait."""
        with self._lock:
            self._waiting.discard(name)


def is_heard(old: Any, is_open: Callable[[], bool]) -> bool:
    """Waits until it is clear whether the holder of a name is there: it was heard (True), or gone or silent (False).

    `old` is NVFlare's SfmConnection, `is_open` says whether it has not been closed.
    """
    heard_at = old.last_activity
    silent_s = min(max(time.time() - heard_at, 0.0), YOUNG_S)  # a clock may have been set back
    until = time.monotonic() + max(YOUNG_S - silent_s, ASKED_S)
    _ask(old)
    while time.monotonic() < until:
        if not is_open():
            return False
        if old.last_activity != heard_at:
            return True
        time.sleep(_LOOK_S)
    return False


def _ask(old: Any) -> None:
    """By a thread, since sending blocks where nobody reads at the other end; by one alone: such a holder, that speaks
    and never reads, would else cost the server a thread with each newcomer."""
    with _asking:
        thread = _asked.get(old)
        if thread is None or not thread.is_alive():
            _asked[old] = threading.Thread(target=old.send_heartbeat, args=(Types.PING,), daemon=True)
            _asked[old].start()


def _install(names: Names) -> None:
    def process_frame_task(self: ConnManager, newcomer: Any, frame: Any) -> None:
        name = _wanted_name(self, newcomer, frame)
        holder = _holder(self, name) if name else None
        if holder is None or holder is newcomer:
            _process_frame_task(self, newcomer, frame)
        else:
            # Not in the pool of threads that serves all frames: newcomers would fill it.
            threading.Thread(target=decide, args=(self, newcomer, frame, name, holder), daemon=True).start()

    def decide(manager: ConnManager, newcomer: Any, frame: Any, name: str, holder: Any) -> None:
        if not names.wait(name):
            _refuse(newcomer, name, "another start of it waits for the name")
            return
        try:
            if is_heard(holder, lambda: _is_open(manager, holder)):
                _refuse(newcomer, name, "the first one is connected and was heard")
            elif _is_open(manager, newcomer):
                _process_frame_task(manager, newcomer, frame)
        finally:
            names.waited(name)

    def authenticated_client(self: ClientManager, request: Any, fl_ctx: FLContext, client_type: Any) -> Any:
        name = str(request.get_header(CellMessageHeaderKeys.CLIENT_NAME))
        over = getattr(request.get_prop(MessagePropKey.ENDPOINT), "name", None)
        if not _may_log_in(self, name, over, client_type):
            _log.warning("a login as %s over the connection of %s was refused", readable(name), over)
            fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, "log in over your own connection", sticky=False)
            return None
        return _authenticated_client(self, request, fl_ctx, client_type)

    ConnManager.process_frame_task = process_frame_task
    ClientManager.authenticated_client = authenticated_client


def uninstall() -> None:
    """NVFlare's own ways again (for tests: no server does this)."""
    ConnManager.process_frame_task = _process_frame_task
    ClientManager.authenticated_client = _authenticated_client


def _wanted_name(manager: ConnManager, newcomer: Any, frame: Any) -> str:
    """The name in a greeting, where the connection's certificate may have it; else empty: NVFlare judges those.

    Any greeting, not a connection's first alone: a later one changes its name.
    """
    try:
        prefix = Prefix.from_bytes(frame)
        if prefix.type not in (Types.HELLO, Types.READY):
            return ""
        data = msgpack.unpackb(memoryview(frame)[PREFIX_LEN + prefix.header_len :])
        name = str(FQCN.normalize(data[HandshakeKeys.ENDPOINT_NAME]))
        # People's consoles have a random name for each session.
        if FQCN.validate(name) or is_valid_admin_client_name(name):
            return ""
        peer = (newcomer.conn.get_conn_properties() or {}).get(DriverParams.PEER_CN.value)
        manager.identity_resolver.require_match(name, peer, "connection")
    except Exception:  # noqa: BLE001 - whatever is wrong with it, NVFlare's own handling refuses it with its words
        return ""
    return name


def _holder(manager: ConnManager, name: str) -> Any | None:
    endpoint = manager.sfm_endpoints.get(name)
    connections = list(endpoint.connections) if endpoint is not None else []
    return connections[-1] if connections else None


def _is_open(manager: ConnManager, connection: Any) -> bool:
    return connection.get_name() in manager.sfm_conns


def _may_log_in(clients: ClientManager, name: str, over: str | None, client_type: Any) -> bool:
    """Whether this connection's name, which its certificate may have, may log in as `name`.

    A person's console has a random name, and may have any certificate: it must not end a site's login.
    """
    if over == name:
        return True
    is_console = client_type == ClientType.ADMIN and is_valid_admin_client_name(over)
    return is_console and name not in clients.name_to_clients


def _refuse(newcomer: Any, name: str, why: str) -> None:
    _log.warning("a second start of %s was refused: %s", name, why)
    newcomer.conn.close()


__all__ = ["ASKED_S", "YOUNG_S", "Names", "SecondStart", "is_heard", "uninstall"]
