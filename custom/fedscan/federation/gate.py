"""The last word in a site's job process: what leaves it, frame by frame, and nothing past it."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedscan.federation import no_payload_files, passed_answer
from fedscan.federation.gate_door import Door
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.outgoing import watch_frames


class OutboundGate(FLComponent):  # type: ignore[misc]
    """Among the components of the site's KIT/local/privacy.json. Takes no arguments.

    It stands from its construction on, before the job process is connected to anything: where it cannot, the
    constructor raises, and the job process ends. What is on no list of `gate_tables` stays at the site, is counted in
    STATE/bytes and noted in STATE/refusals.jsonl by kind and topic; the sender in this process gets an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._door = Door(passed_answer.passed_answer)
        self._result: object = None
        no_payload_files.refuse()
        watch_frames(self._door)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called after the job's own handlers, since NVFlare builds the site's components last."""
        if event_type in (EventType.ABOUT_TO_START_RUN, EventType.START_RUN):
            self._door.keep_in(Path(fl_ctx.get_engine().get_workspace().get_site_config_dir()))
        elif event_type == EventType.AFTER_TASK_RESULT_FILTER:
            self._result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
            self._restore(whole=True)
        elif event_type == EventType.BEFORE_SEND_TASK_RESULT:
            self._restore(whole=False)  # a handler may have kept the result since then
            self._result = None

    def _restore(self, *, whole: bool) -> None:
        if isinstance(self._result, Shareable) and passed_answer.restore(self._result, REFUSED_BY_POLICY, whole=whole):
            self._door.note("result", "it was changed after the guard had passed it")
