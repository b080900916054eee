"""What can go wrong with functions."""

from neolayer.core.errors import Conflict, InvalidRequest, NotFound, ServiceError, TooManyRequests, Unavailable


class FunctionNotFound(NotFound):
    """No such function."""

    code = "function_not_found"


class VersionNotFound(NotFound):
    """The function has no such version."""

    code = "version_not_found"


class AliasNotFound(NotFound):
    """The function has no such alias."""

    code = "alias_not_found"


class FunctionExists(Conflict):
    """A function of this name exists; `PUT` deploys a new version of it."""

    code = "function_exists"


class ExecutionNotFound(NotFound):
    """No such execution."""

    code = "execution_not_found"


class NotCancellable(Conflict):
    """Only an execution that waits to run can be cancelled."""

    code = "not_cancellable"


class NotReplayable(Conflict):
    """Only a dead execution can be replayed."""

    code = "not_replayable"


class QueueFull(TooManyRequests):
    """The tenant has too many asynchronous executions waiting."""

    code = "queue_full"


class IdempotencyInProgress(Conflict):
    """The first call with this idempotency key is still running."""

    code = "idempotency_in_progress"
    retryable = True


class IdempotencyKeyReused(InvalidRequest):
    """This idempotency key belongs to another request."""

    code = "idempotency_key_reused"


class DepthExceeded(InvalidRequest):
    """Functions call each other too deeply."""

    code = "depth_exceeded"


class CallOver(InvalidRequest):
    """The time of the function that called this one is over."""

    code = "call_over"


class TooManyCalls(InvalidRequest):
    """One execution causes too many calls of functions."""

    code = "too_many_calls"


class UnknownSecret(InvalidRequest):
    """The function asks for a secret that does not exist."""

    code = "unknown_secret"


class ExecutionFailed(ServiceError):
    """The function failed: it is not the service's fault, so it is no 5xx.

    ``code`` is the enclave's: ``function_error``, ``invalid_output``, ``timeout``, ``cpu_limit``,
    ``memory_limit``, ``invalid_function``; ``cell_crashed`` alone is a 503.
    """

    def __init__(self, code: str, message: str, *, retryable: bool, **extra: object) -> None:
        super().__init__(message, **extra)
        self.code = code
        self.retryable = retryable
        self.status = 503 if code == "cell_crashed" else 422


class RecordsFull(Unavailable):
    """Executions cannot be recorded just now, so none is started."""

    code = "records_full"
