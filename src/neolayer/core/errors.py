"""The one tree of errors.

Every error that may reach a user has a stable ``code``, an HTTP ``status`` and says whether the same
request may simply be tried again. Rooms subclass `ServiceError` in their own ``errors.py``.
"""

from typing import Any


class ServiceError(Exception):
    """Something went wrong inside the service."""

    #: Of the class; errors that come from elsewhere with a code of their own set it on the instance.
    code: str = "internal_error"
    status: int = 500
    retryable: bool = False

    def __init__(self, detail: str | None = None, **extra: Any) -> None:
        self.detail = detail or (self.__doc__ or self.code).strip().splitlines()[0]
        self.extra = extra
        super().__init__(self.detail)


class InvalidRequest(ServiceError):
    """The request is well-formed JSON but not acceptable."""

    code = "invalid_request"
    status = 422


class MalformedJson(ServiceError):
    """The body is not valid JSON."""

    code = "malformed_json"
    status = 400


class BodyTooLarge(ServiceError):
    """The request body is larger than this endpoint accepts."""

    code = "body_too_large"
    status = 413


class NotFound(ServiceError):
    """No such resource."""

    code = "not_found"
    status = 404


class Conflict(ServiceError):
    """The request contradicts the present state."""

    code = "conflict"
    status = 409


class IdempotencyMismatch(Conflict):
    """This idempotency key was used before with a different body."""

    code = "idempotency_mismatch"


class Unauthenticated(ServiceError):
    """A valid API key is required: send `Authorization: Bearer nsl_…`."""

    code = "unauthenticated"
    status = 401


class TooManyRequests(ServiceError):
    """Too many requests; try again later."""

    code = "too_many_requests"
    status = 429
    retryable = True


class Unavailable(ServiceError):
    """A part that this request needs is not reachable just now."""

    code = "unavailable"
    status = 503
    retryable = True
