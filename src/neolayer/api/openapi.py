"""What the description of the API says of errors and of open routes, the same for every operation."""

from collections.abc import Iterator
from typing import Final

from litestar import Litestar
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

_PROBLEM: Final = Schema(
    type=OpenAPIType.OBJECT,
    title="Problem",
    description="RFC 9457, with members of its own by `code`.",
    required=["title", "status", "detail", "code", "retryable"],
    properties={
        "title": Schema(type=OpenAPIType.STRING),
        "status": Schema(type=OpenAPIType.INTEGER),
        "detail": Schema(type=OpenAPIType.STRING, description="For people."),
        "code": Schema(type=OpenAPIType.STRING, description="For programs: stable."),
        "retryable": Schema(type=OpenAPIType.BOOLEAN, description="The same request may succeed later."),
    },
)
_ANY_JSON: Final = {"application/json": OpenAPIMediaType(schema=Schema(description="Any JSON."))}


def describe(api: Litestar) -> None:
    """Put into the description what the framework cannot know."""
    problem = OpenAPIResponse(
        description="Any error: a problem with a stable `code`.",
        content={"application/problem+json": OpenAPIMediaType(schema=_PROBLEM)},
    )
    for path, operation in _operations(api):
        responses = operation.responses or {}
        responses.pop("400", None)
        responses["default"] = problem
        operation.responses = responses
        if not path.startswith("/api/"):
            operation.security = []
        if path.endswith("/invoke"):
            operation.request_body = RequestBody(content=dict(_ANY_JSON), description="The function's input.")
            output = responses["200"]
            if isinstance(output, OpenAPIResponse):
                output.content = dict(_ANY_JSON)
                output.description = "What the function returned."
        if path == "/health/ready":
            responses["503"] = responses["200"]
        if path == "/api/v1/transactions" and "202" in responses:
            responses["200"] = responses["202"]


def _operations(api: Litestar) -> Iterator[tuple[str, Operation]]:
    for path, item in (api.openapi_schema.paths or {}).items():
        for operation in (item.get, item.put, item.post, item.delete):
            if operation is not None:
                yield path, operation
