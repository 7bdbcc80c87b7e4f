"""The second counter: in a site's parent process, which registers, sends heartbeats and answers commands."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedscan.federation.certificate_wait import wait_until_it_holds
from fedscan.federation.gate_door import Door, Release
from fedscan.federation.gate_frames import BlockedError, Frame
from fedscan.federation.outgoing import watch_frames


class SiteByteCounter(FLComponent):  # type: ignore[misc]
    """Among the components of the site's KIT/local/resources.json. Takes no arguments.

    Counts each frame of the parent process, and holds it to the parent's own list in `gate_tables`. NVFlare builds it
    in each job process as well, before the site's OutboundGate takes its place: a job process without one sends
    nothing. It is built before anything connects, so that a certificate that does not hold is waited for here.
    """

    def __init__(self) -> None:
        super().__init__()
        wait_until_it_holds()
        self._door = Door(lambda: None)
        watch_frames(self._watch)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """At the parent's start, before it registers, it learns where its counts go."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            self._door.keep_in(Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir()))

    def _watch(self, frame: Frame, release: Release) -> None:
        if frame.job:
            raise BlockedError("no gate stands in this job process: its kit's privacy.json must name OutboundGate")
        self._door(frame, release)
