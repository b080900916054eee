"""What the enclave refuses."""

from typing import Any

from neolayer.core.errors import ServiceError, Unavailable


class EnclaveUnavailable(Unavailable):
    """The enclave is not reachable just now; try again."""

    code = "enclave_unavailable"


class OutcomeUnknown(ServiceError):
    """The enclave was lost while the function ran: whether it had effects is unknown, repeating is not safe."""

    code = "outcome_unknown"
    status = 502


class EnclaveRefused(ServiceError):
    """The enclave refused the request. ``code`` is the enclave's own."""

    def __init__(self, code: str, message: str, *, retryable: bool, **extra: Any) -> None:
        super().__init__(message, **extra)
        # Instance attributes shadow the class's: the code is only known at run time.
        self.code = code  # type: ignore[misc]
        self.retryable = retryable  # type: ignore[misc]
        self.status = 503 if retryable else 422  # type: ignore[misc]
