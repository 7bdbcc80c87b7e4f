"""The three classes that a job names: they take nothing from a job but the signed plan."""

from __future__ import annotations

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.fuel.utils import fobs

from fedscan.federation.job.controller import DiffusionFedAvg
from fedscan.federation.job.executor import DiffusionExecutor
from fedscan.federation.job.persistor import CheckpointPersistor
from fedscan.federation.messages import REFUSED_BY_POLICY


@pytest.mark.parametrize("kind", [DiffusionFedAvg, DiffusionExecutor])
@pytest.mark.parametrize("arguments", [{"store": "/etc"}, {"num_rounds": 5}, {"model": {"path": "os.system"}}])
def test_no_argument_from_a_job_is_taken(kind: type, arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        kind(**arguments)


def test_the_controller_is_a_fedavg_and_the_persistor_needs_nothing() -> None:
    assert issubclass(DiffusionFedAvg, FedAvg)
    assert CheckpointPersistor().filter_id is None


def test_an_executor_that_is_not_set_up_trains_nothing() -> None:
    executor = DiffusionExecutor()
    task = DXO(DataKind.WEIGHTS, data={"a": torch.zeros(1)}).to_shareable()
    reply = executor.execute("train", task, FLContext(), Signal())
    assert reply.get_return_code() == REFUSED_BY_POLICY
    assert set(reply) <= {"__headers__"}


def test_another_task_name_is_unknown() -> None:
    reply = DiffusionExecutor().execute("submit_model", Shareable(), FLContext(), Signal())
    assert reply.get_return_code() == ReturnCode.TASK_UNKNOWN


def test_tensors_travel_as_safetensors_and_no_pickle_is_taken() -> None:
    DiffusionExecutor()
    data = fobs.dumps({"a": torch.arange(4.0)})
    assert b"pickle" not in data
    assert torch.equal(fobs.loads(data)["a"], torch.arange(4.0))
