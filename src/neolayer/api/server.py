"""The HTTP application: routes of the rooms, plus what every route shares."""

from collections.abc import Mapping, Sequence
from typing import Any

from litestar import Litestar, Request
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler

from neolayer import __version__
from neolayer.api.auth import Authenticator, AuthMiddleware
from neolayer.api.health import HealthChecks, live, ready
from neolayer.api.metrics import Refresh, metrics
from neolayer.api.openapi import describe
from neolayer.api.problems import EXCEPTION_HANDLERS
from neolayer.core.types import Principal


def principal_of(request: Request[Principal, Any, Any]) -> Principal:
    return request.user


def build_api(
    *,
    routes: Sequence[ControllerRouterHandler],
    services: Mapping[str, object],
    authenticator: Authenticator,
    checks: HealthChecks,
    refresh_metrics: Refresh,
    body_limit_bytes: int,
) -> Litestar:
    """Join the rooms' routes. ``services`` are injected into handlers by parameter name."""

    def constant(value: object) -> Provide:
        return Provide(lambda: value, sync_to_thread=False, use_cache=True)

    dependencies: dict[str, Any] = {name: constant(service) for name, service in services.items()}
    dependencies |= {
        "principal": Provide(principal_of, sync_to_thread=False),
        "checks": constant(checks),
        "refresh": constant(refresh_metrics),
    }
    api = Litestar.from_config(
        AppConfig(
            route_handlers=[*routes, live, ready, metrics],
            dependencies=dependencies,
            middleware=[AuthMiddleware(authenticator)],
            exception_handlers=EXCEPTION_HANDLERS,
            request_max_body_size=body_limit_bytes,
            openapi_config=OpenAPIConfig(
                title="Neo N3 Service Layer",
                version=__version__,
                path="/schema",
                components=Components(security_schemes={"apiKey": SecurityScheme(type="http", scheme="bearer")}),
                security=[{"apiKey": []}],
                render_plugins=[JsonRenderPlugin()],
            ),
        )
    )
    describe(api)
    return api
