"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from neolayer.core.errors import MalformedJson, ServiceError
from neolayer.core.names import WORDS

_log = logging.getLogger(__name__)
_PROBLEM = "application/problem+json"

#: Codes of errors that the framework raises itself, by status.
_FRAMEWORK_CODES = {
    400: "malformed_json",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def problem(error: ServiceError) -> dict[str, Any]:
    """The body for an error: title, status, detail, code, retryable and the error's own extra members."""
    return {
        "title": _TITLES.get(error.status, "Error"),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "retryable": error.retryable,
        **error.extra,
    }


def encode_problem(error: ServiceError) -> bytes:
    return msgspec.json.encode(problem(error))


def problem_headers(error: ServiceError) -> dict[str, str]:
    headers = {"content-type": _PROBLEM}
    if error.status in (429, 503):
        headers["retry-after"] = str(error.extra.get("retry_after_s", 1))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def service_error_handler(request: Request[Any, Any, Any], error: ServiceError) -> Response[bytes]:
    if error.status == 500:
        _log.error("%s %s failed: %s", request.method, request.url.path, error.detail, exc_info=error)
    headers = problem_headers(error)
    return Response(
        encode_problem(error), status_code=error.status, media_type=headers.pop("content-type"), headers=headers
    )


def http_exception_handler(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    body: dict[str, Any] = {
        "title": _TITLES.get(error.status_code, "Error"),
        "status": error.status_code,
        "detail": error.detail,
        "code": _FRAMEWORK_CODES.get(error.status_code, "http_error"),
        "retryable": False,
    }
    status = error.status_code
    if isinstance(error, ValidationException):
        # Litestar says 400 both for bytes that are no JSON and for JSON that does not fit the schema.
        cause = error.__cause__ or error.__context__
        if not (isinstance(cause, msgspec.DecodeError) and not isinstance(cause, msgspec.ValidationError)):
            status = 422
            body |= {"title": _TITLES[422], "status": 422, "code": "invalid_request"}
            if isinstance(error.extra, list):
                body["errors"] = [part | {"key": _member(part)} if "key" in part else part for part in error.extra]
                body["detail"] = "; ".join(_sentence(part) for part in error.extra)
    return Response(body, status_code=status, media_type=_PROBLEM)


def _sentence(part: dict[str, Any]) -> str:
    message = str(part.get("message", ""))
    for pattern, words in WORDS.items():
        if repr(pattern) in message or pattern in message:
            message = words
    key = _member(part)
    return message if key == "data" else f"{key}: {message}"


def _member(part: dict[str, Any]) -> str:
    # Handlers call a parameter `in_state` where the framework has taken the name `state`.
    return str(part.get("key") or "data").removeprefix("in_")


def unexpected_error_handler(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    _log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return Response(problem(ServiceError()), status_code=500, media_type=_PROBLEM)


def unreadable_body_handler(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    reason = "nested too deeply" if isinstance(error, RecursionError) else "not UTF-8"
    return service_error_handler(request, MalformedJson(f"the body is {reason}"))


EXCEPTION_HANDLERS: dict[int | type[Exception], Any] = {
    ServiceError: service_error_handler,
    RecursionError: unreadable_body_handler,
    UnicodeDecodeError: unreadable_body_handler,
    HTTPException: http_exception_handler,
    Exception: unexpected_error_handler,
}
