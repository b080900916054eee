"""Deploy, list, delete: functions and their immutable versions."""

from typing import Any, Final
from uuid import UUID

from neolayer.core.errors import BodyTooLarge
from neolayer.core.ids import uuid7
from neolayer.db.notices import NoticeListener, notify
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Enclave
from neolayer.functions.aliases import Aliases, shares
from neolayer.functions.errors import FunctionExists, FunctionNotFound, UnknownSecret, VersionNotFound
from neolayer.functions.model import MAX_SOURCE_BYTES, FunctionSpec, FunctionView, VersionPage, VersionView
from neolayer.functions.records import error_json
from neolayer.functions.resolver import MAX_VERSION, TOPIC
from neolayer.secrets.service import Secrets

_SQL: Final = load_queries("neolayer.functions")
FUNCTION_DELETED: Final = "function_deleted"


class Versions:
    def __init__(
        self, database: Database, enclave: Enclave, secrets: Secrets, aliases: Aliases, notices: NoticeListener
    ) -> None:
        self._database = database
        self._enclave = enclave
        self._secrets = secrets
        self._aliases = aliases
        self._notices = notices

    async def create(self, tenant_id: UUID, name: str, spec: FunctionSpec) -> FunctionView:
        """
        Raises:
            FunctionExists: the tenant has one of this name.
            EnclaveRefused: code ``syntax_error`` (with line and column), ``no_entry_point``, …; nothing is stored.
            UnknownSecret: a secret it asks for does not exist.
        """
        code_hash = await self._check(tenant_id, spec)
        async with self._database.transaction() as connection:
            params = {"tenant_id": tenant_id, "id": uuid7(), "name": name}
            row = await (await connection.execute(_SQL["insert_function"], params)).fetchone()
            if row is None:
                raise FunctionExists(f"a function named {name!r} exists; PUT deploys a new version of it")
            await self._insert_version(connection, tenant_id, row[0], row[1], spec, code_hash)
        self._notices.dispatch(TOPIC, str(tenant_id))
        return await self.show(tenant_id, name)

    async def deploy(self, tenant_id: UUID, name: str, spec: FunctionSpec) -> FunctionView:
        """Make a new version, `live` at once unless that is pinned; makes the function if there is none.

        Errors as `create`.
        """
        code_hash = await self._check(tenant_id, spec)
        async with self._database.transaction() as connection:
            params = {"tenant_id": tenant_id, "id": uuid7(), "name": name}
            row = await (await connection.execute(_SQL["insert_function"], params)).fetchone()
            row = row or await (await connection.execute(_SQL["next_version"], params)).fetchone()
            if row is None:
                raise FunctionNotFound(f"function {name!r} was deleted meanwhile; deploy again")
            function_id, number = row
            if spec.hold and number > 1:
                held = {"tenant_id": tenant_id, "function_id": function_id, "number": number}
                await connection.execute(_SQL["hold_live"], held)
            await self._insert_version(connection, tenant_id, function_id, number, spec, code_hash)
        self._notices.dispatch(TOPIC, str(tenant_id))
        return await self.show(tenant_id, name)

    async def _check(self, tenant_id: UUID, spec: FunctionSpec) -> bytes:
        if len(spec.source.encode()) > MAX_SOURCE_BYTES:
            raise BodyTooLarge(f"a source has at most {MAX_SOURCE_BYTES} bytes")
        known = {secret.name for secret in await self._secrets.all(tenant_id)} if spec.secrets else set()
        if missing := sorted(set(spec.secrets) - known):
            raise UnknownSecret(
                f"no secret {', '.join(missing)}; `neolayer secrets set {missing[0]}` makes it", secrets=missing
            )
        return await self._enclave.check(str(tenant_id), spec.source)

    async def _insert_version(
        self,
        connection: Connection,
        tenant_id: UUID,
        function_id: UUID,
        number: int,
        spec: FunctionSpec,
        code_hash: bytes,
    ) -> None:
        await connection.execute(
            _SQL["insert_version"],
            {
                "tenant_id": tenant_id,
                "function_id": function_id,
                "number": number,
                "source": spec.source,
                "code_hash": code_hash,
                "timeout_ms": spec.timeout_ms,
                "cpu_ms": spec.cpu_ms,
                "memory_mb": spec.memory_mb,
                "secrets": sorted(set(spec.secrets)),
                "egress": sorted(set(spec.egress)),
                "isolation": spec.isolation,
                "max_attempts": spec.max_attempts,
            },
        )
        await notify(connection, TOPIC, str(tenant_id))

    async def show(self, tenant_id: UUID, name: str) -> FunctionView:
        """
        Raises:
            FunctionNotFound: the tenant has none of this name.
        """
        row = await self._database.fetch_one(_SQL["by_name"], {"tenant_id": tenant_id, "name": name})
        if row is None:
            raise FunctionNotFound(f"no function {name!r}")
        return _function(row)

    async def recent(self, tenant_id: UUID, before: UUID, limit: int) -> list[FunctionView]:
        rows = await self._database.fetch(_SQL["list"], {"tenant_id": tenant_id, "before": before, "limit": limit})
        return [_function(row) for row in rows]

    async def delete(self, tenant_id: UUID, name: str) -> None:
        """Executions and versions stay, what waits in the queue fails; the name is free again.

        Raises:
            FunctionNotFound: the tenant has none of this name.
        """
        async with self._database.transaction() as connection:
            params = {"tenant_id": tenant_id, "name": name}
            row = await (await connection.execute(_SQL["delete"], params)).fetchone()
            if row is None:
                raise FunctionNotFound(f"no function {name!r}")
            error = error_json(FUNCTION_DELETED, "the function was deleted before this ran", "")
            await connection.execute(_SQL["end_of_function"], params | {"function_id": row[0], "error": error})
            await notify(connection, TOPIC, str(tenant_id))
        self._notices.dispatch(TOPIC, str(tenant_id))

    # --- versions -------------------------------------------------------------------------------------

    async def versions(self, tenant_id: UUID, name: str, before: int, limit: int) -> VersionPage:
        """Newest first, with numbers below ``before``.

        Raises:
            FunctionNotFound: the tenant has none of this name.
        """
        function_id, named = await self._named(tenant_id, name)
        params = {"tenant_id": tenant_id, "function_id": function_id, "before": before, "limit": limit + 1}
        rows = await self._database.fetch(_SQL["list_versions"], params)
        items = [_version(row, named) for row in rows[:limit]]
        return VersionPage(items, str(items[-1].version) if len(rows) > limit else None)

    async def version(self, tenant_id: UUID, name: str, number: int) -> VersionView:
        """One version with its source.

        Raises:
            FunctionNotFound, VersionNotFound: the tenant has none like that.
        """
        function_id, named = await self._named(tenant_id, name)
        params = {"tenant_id": tenant_id, "function_id": function_id, "number": min(number, MAX_VERSION)}
        row = await self._database.fetch_one(_SQL["version"], params)
        if row is None:
            raise VersionNotFound(f"function {name!r} has no version {number}")
        return _version(row, named)

    async def _named(self, tenant_id: UUID, name: str) -> tuple[UUID, dict[int, list[str]]]:
        """The function's id, and by version the aliases that name it."""
        function_id, aliases = await self._aliases.of(tenant_id, name)
        named: dict[int, list[str]] = {}
        for alias in aliases:
            for share in alias.versions:
                named.setdefault(share.version, []).append(alias.name)
        return function_id, named


def _function(row: tuple[Any, ...]) -> FunctionView:
    id, name, version, live, weights, code_hash, timeout_ms, cpu_ms, memory_mb, secrets, egress, *rest = row
    isolation, max_attempts, created, updated, source = rest
    return FunctionView(
        id=id,
        name=name,
        version=version,
        live=shares(live or [version], weights or [100]),
        pinned=live is not None,
        code_hash=bytes(code_hash).hex(),
        timeout_ms=timeout_ms,
        cpu_ms=cpu_ms,
        memory_mb=memory_mb,
        secrets=secrets,
        egress=egress,
        isolation=isolation,
        max_attempts=max_attempts,
        created_at=created,
        updated_at=updated,
        source=source,
    )


def _version(row: tuple[Any, ...], named: dict[int, list[str]]) -> VersionView:
    number, source, code_hash, timeout_ms, cpu_ms, memory_mb, secrets, egress, isolation, attempts, created = row
    return VersionView(
        version=number,
        code_hash=bytes(code_hash).hex(),
        timeout_ms=timeout_ms,
        cpu_ms=cpu_ms,
        memory_mb=memory_mb,
        secrets=secrets,
        egress=egress,
        isolation=isolation,
        max_attempts=attempts,
        aliases=named.get(number, []),
        created_at=created,
        source=source,
    )
