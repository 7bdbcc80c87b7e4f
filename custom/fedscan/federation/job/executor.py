"""The one executor that a job names at a site."""

from __future__ import annotations

import time
from pathlib import Path

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from fedscan.federation import messages, orphans, site_job
from fedscan.federation.message_count import count_messages
from fedscan.federation.places import CLIENT_CONFIG, PlacesError
from fedscan.federation.site_job import SiteJob
from fedscan.federation.versions import VersionError
from fedscan.privacy.site_file import SiteError
from fedscan.training.trainer_replies import TrainerDied


class DiffusionExecutor(Executor):
    """Trains the deployed plan's diffusion model at this site.

    Takes no arguments: whatever it needs is the site's own (privacy-scope properties) or the signed app folder's
    (`plan` and `submission` of config_fed_client.json). Reasons stay at the site; the server gets a return code.
    """

    def __init__(self) -> None:
        super().__init__()
        fobs.register(TensorDecomposer)
        orphans.end_with_parent()
        self._job: SiteJob | None = None
        self._config: Path | None = None
        self._unfit = False

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Counts outgoing messages from the start of the run; ends the trainer at its end."""
        if event_type == EventType.START_RUN:
            self._config = _app(fl_ctx) / "config" / CLIENT_CONFIG
            try:
                self._job = _open(fl_ctx)
                count_messages(fl_ctx, self._job.training.wall)
                fl_ctx.get_engine().register_aux_message_handler(messages.TOPIC_COMPLETE, self._complete)
                self._job.warm_up()
            except (PlacesError, SiteError, TrainerDied, OSError, VersionError) as error:
                self._unfit = isinstance(error, VersionError)
                self.log_error(fl_ctx, f"this site is not set up for the job: {type(error).__name__}")
                self._job = None
        elif event_type == EventType.END_RUN and self._job is not None:
            self._job.training.stop()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """One round of local training: DXO WEIGHTS in, DXO WEIGHT_DIFF out."""
        came = time.monotonic()
        if task_name != messages.TASK_TRAIN:
            return make_reply(ReturnCode.TASK_UNKNOWN)

        def abort() -> bool:
            return bool(abort_signal.triggered)

        if self._job is None:
            return make_reply(site_job.refuse_at_its_time(self._config, abort, came, by_version=self._unfit))
        try:
            dxo = from_shareable(shareable)
            record, weights = (dxo.meta or {}).get(messages.META_KEY), dict(dxo.data)
        except (ValueError, TypeError):  # refused as any task that has not the one form
            record, weights = None, {}
        result = self._job.answer(record, weights, abort, came)
        if isinstance(result, str):
            return make_reply(result)
        reply: Shareable = DXO(
            DataKind.WEIGHT_DIFF, data=result.update, meta={messages.META_KEY: result.record.model_dump(mode="json")}
        ).to_shareable()
        return reply

    def _complete(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """The server reports the run complete: a kept answer will not be asked for again."""
        if self._job is not None:
            self._job.complete()
        return make_reply(ReturnCode.OK)


def _app(fl_ctx: FLContext) -> Path:
    return Path(fl_ctx.get_workspace().get_app_dir(fl_ctx.get_job_id()))


def _open(fl_ctx: FLContext) -> SiteJob:
    return SiteJob.open(
        app=_app(fl_ctx),
        root_ca=Path(fl_ctx.get_workspace().get_file_path_in_startup("rootCA.pem")),
        scope_properties=fl_ctx.get_prop(FLContextKey.SCOPE_PROPERTIES),
        name=fl_ctx.get_identity_name(),
    )
