"""What can go wrong with functions."""

from neolayer.core.errors import Conflict, InvalidRequest, NotFound, ServiceError, Unavailable


class FunctionNotFound(NotFound):
    """No such function."""

    code = "function_not_found"


class FunctionExists(Conflict):
    """A function of this name exists; `PUT` deploys a new version of it."""

    code = "function_exists"


class ExecutionNotFound(NotFound):
    """No such execution."""

    code = "execution_not_found"


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
