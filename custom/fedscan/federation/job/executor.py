"""The one executor that a job names at a site."""

from __future__ import annotations

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

from fedscan.federation import messages
from fedscan.federation.message_count import count_messages
from fedscan.federation.places import CLIENT_CONFIG, PlacesError, plan_and_submission, site_places
from fedscan.federation.site_round import RefusedError, SiteTraining
from fedscan.training.trainer_client import TrainerAborted, TrainerDied, TrainerRefused, TrainerTimeout


class DiffusionExecutor(Executor):
    """Trains the deployed plan's diffusion model at this site.

    Takes no arguments: whatever it needs is the site's own (privacy-scope properties) or the signed app folder's
    (`plan` and `submission` of config_fed_client.json). Error texts stay at the site; the server gets a return code.
    """

    def __init__(self) -> None:
        super().__init__()
        fobs.register(TensorDecomposer)
        self._training: SiteTraining | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Counts outgoing messages from the start of the run; ends the trainer at its end."""
        if event_type == EventType.START_RUN:
            try:
                self._training = self._prepare(fl_ctx)
                count_messages(fl_ctx, self._training.wall)
                self._training.warm_up()
            except (PlacesError, TrainerDied, OSError) as error:
                self.log_error(fl_ctx, f"this site is not set up for the job: {_own_words(error)}")
        elif event_type == EventType.END_RUN and self._training is not None:
            self._training.stop()

    def _prepare(self, fl_ctx: FLContext) -> SiteTraining:
        workspace = fl_ctx.get_workspace()
        config = Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / CLIENT_CONFIG
        plan, submission = plan_and_submission(config)
        if submission.is_expired():
            raise PlacesError(f"the submission expired at {submission.expires}: submit the job anew")
        places = site_places(fl_ctx.get_prop(FLContextKey.SCOPE_PROPERTIES))
        return SiteTraining(places, plan, submission, site=fl_ctx.get_identity_name())

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """One round of local training: DXO WEIGHTS in, DXO WEIGHT_DIFF out."""
        if task_name != messages.TASK_TRAIN:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        if self._training is None:
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        try:
            dxo = from_shareable(shareable)
            task = messages.parse_task(dxo.meta.get(messages.META_KEY))
            answer, update = self._training.train(task, dict(dxo.data), lambda: bool(abort_signal.triggered))
        except TrainerAborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except (messages.MessageError, RefusedError, TrainerRefused) as error:
            self.log_error(fl_ctx, f"task refused: {error}")
            return make_reply(ReturnCode.BAD_TASK_DATA)
        except (TrainerDied, TrainerTimeout, OSError, ValueError) as error:
            self.log_error(fl_ctx, f"training failed: {_own_words(error)}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        reply: Shareable = DXO(
            DataKind.WEIGHT_DIFF, data=update, meta={messages.META_KEY: answer.model_dump(mode="json")}
        ).to_shareable()
        return reply


def _own_words(error: Exception) -> str:
    """Our own errors are written to be shown; others may quote data or paths, so only their kind is."""
    return str(error) if isinstance(error, PlacesError | TrainerDied | TrainerTimeout) else type(error).__name__
