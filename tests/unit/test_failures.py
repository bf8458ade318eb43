"""Which failures are worth a retry, and what is said of the others."""

import pickle

import pytest
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError

from orchestrator.errors import DivergedError, OrchestratorError, StageError, UserError
from orchestrator.job.sections import TrainConfig
from orchestrator.train.failures import Decision, PreemptedError, decide, explain

CONFIG = TrainConfig(micro_batch_size=32)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1"),
        RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms"),
        RuntimeError("NCCL error: remote process exited or there was a network error"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0"),
        torch.distributed.DistNetworkError("The client socket has timed out after 60000ms"),
        ConnectionResetError("Connection reset by peer"),
        TimeoutError("timed out"),
        ActorDiedError(),
        GetTimeoutError("Get timed out"),
        PreemptedError("a machine is taken away"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_another_worker_or_machine_caused_is_tried_again(error: Exception) -> None:
    assert decide(error) is Decision.RETRY


@pytest.mark.parametrize(
    "error",
    [
        KeyError("tokens"),
        TypeError("unsupported operand"),
        ValueError("timed out"),  # a text alone decides nothing
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OutOfMemoryError("killed due to the node running low on memory"),
        DivergedError("the training diverged"),
        UserError("train.lr = -1"),
        FileNotFoundError("vocabulary.json"),
        ImportError("cannot import name 'Task'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_fail_again_is_not_tried_again(error: Exception) -> None:
    assert decide(error) is Decision.RAISE


@pytest.mark.parametrize(
    "message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"]
)
def test_no_memory_names_the_settings_that_need_less(message: str) -> None:
    told = str(explain(RuntimeError(message), CONFIG))
    assert "train.micro_batch_size = 32" in told and "model.d_model" in told


def test_an_error_of_our_own_stays_as_it_is() -> None:
    error = UserError("train.lr = -1: must be positive")
    assert explain(error, CONFIG) is error


def fail() -> None:
    raise KeyError("tokens")


def test_a_bug_is_told_in_one_line_with_its_place() -> None:
    with pytest.raises(KeyError) as raised:
        fail()
    told = explain(raised.value, CONFIG)
    assert isinstance(told, StageError)
    assert str(told).startswith("training failed: KeyError: 'tokens' at ")
    assert f"{__file__}:{fail.__code__.co_firstlineno + 1}" in str(told)
    assert "\n" not in str(told)


def test_an_error_without_words_is_told_too() -> None:
    assert "AssertionError" in str(explain(AssertionError(), CONFIG))


@pytest.mark.parametrize("error", [StageError("a"), DivergedError("b"), UserError("c")])
def test_errors_survive_the_way_between_processes(error: OrchestratorError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
