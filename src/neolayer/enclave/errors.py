"""What the enclave refuses."""

from typing import Any, Final

from neolayer.core.errors import ServiceError, Unavailable


class EnclaveUnavailable(Unavailable):
    """The enclave is not reachable just now; try again."""

    code = "enclave_unavailable"


class OutcomeUnknown(ServiceError):
    """The enclave was lost while the function ran: whether it had effects is unknown, repeating is not safe."""

    code = "outcome_unknown"
    status = 502


#: HTTP status of refusals for which `retryable` does not tell it.
STATUSES: Final = {"too_many_calls": 429}
#: Refusals that say something about what the client sent. Any other is a fault of ours.
CLIENT_CODES: Final = frozenset(
    {
        "syntax_error",
        "typescript_not_erasable",
        "import_not_supported",
        "no_entry_point",
        "invalid_function",
        "invalid_egress",
        "invalid_limits",
        "invalid_secret",
        "secret_too_large",
        "source_too_large",
        "input_too_large",
        "upload_invalid",
    }
)


class EnclaveRefused(ServiceError):
    """The enclave refused the request. ``code`` is the enclave's own, see docs/enclave.md."""

    def __init__(self, code: str, message: str, *, retryable: bool, **extra: Any) -> None:
        super().__init__(message, **extra)
        self.code = code
        self.retryable = retryable
        self.status = STATUSES.get(code) or (503 if retryable else 422 if code in CLIENT_CODES else 500)
