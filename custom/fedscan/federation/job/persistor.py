"""The server's model persistor: our checkpoints, safetensors only."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

from fedscan.federation.run_start import starting_state
from fedscan.federation.server_job import ServerJob
from fedscan.training import checkpoints


class CheckpointPersistor(ModelPersistor):
    """Loads the state that the submission starts from, and saves a checkpoint each round. Takes no arguments."""

    META_STATE = "fedscan_state"

    def __init__(self) -> None:
        super().__init__()

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The global weights to start from: a checkpoint, the plan's init model, or the seed's initial weights."""
        job = ServerJob.from_context(fl_ctx)
        state = starting_state(job)
        return make_model_learnable(state.weights, {self.META_STATE: state})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Writes the state in the learnable's meta as a checkpoint."""
        job = ServerJob.from_context(fl_ctx)
        state = model[ModelLearnableKey.META][self.META_STATE]
        checkpoints.save(job.checkpoint_folder, state, job.plan, job.submission.run_id)
