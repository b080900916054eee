"""From what is called to what runs: ``name``, ``name@alias``, ``name@3`` or ``name@latest`` to a bundle."""

import hashlib
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.db.notices import NoticeListener
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Limits, SealedSecret
from neolayer.functions.cache import BundleCache, Choice
from neolayer.functions.errors import AliasNotFound, FunctionNotFound, VersionNotFound
from neolayer.functions.model import LATEST, LIVE, Bundle
from neolayer.secrets.service import TOPIC as SECRETS_TOPIC
from neolayer.secrets.service import Secrets

_SQL: Final = load_queries("neolayer.functions")
#: Notices of this topic carry the tenant's id.
TOPIC: Final = "functions"
MAX_VERSION: Final = 2**31 - 1


class Resolver:
    def __init__(self, database: Database, secrets: Secrets, notices: NoticeListener) -> None:
        self._database = database
        self._secrets = secrets
        self.bundles = BundleCache()
        #: Those asked for by `version`.
        self._versions = BundleCache()
        for cache in (self.bundles, self._versions):
            notices.on(TOPIC, cache.drop)
            notices.on(SECRETS_TOPIC, cache.drop)

    async def bundle(self, tenant_id: UUID, target: str) -> Bundle:
        """What a call runs, from memory or as `resolve`."""
        return self.bundles.get(tenant_id, target) or await self.resolve(tenant_id, target)

    async def resolve(self, tenant_id: UUID, target: str) -> Bundle:
        """Look it up in the tables, and remember it.

        Raises:
            FunctionNotFound: the tenant has none of this name.
            VersionNotFound, AliasNotFound: the function has none like that.
        """
        generation = self.bundles.generation
        name, _, qualifier = target.partition("@")
        alias = qualifier or LIVE
        params = {"tenant_id": tenant_id, "name": name, "alias": alias}
        row = await self._database.fetch_one(_SQL["resolve"], params)
        if row is None:
            raise FunctionNotFound(f"no function {name!r}")
        function_id, latest, versions, weights = row
        if "@" in target and not qualifier:
            raise AliasNotFound(f"after {name}@ comes an alias or the number of a version")
        if alias.isascii() and alias.isdigit():
            versions, weights = [min(int(alias[:10]), MAX_VERSION)], [1]
        elif versions is None:
            if alias not in (LIVE, LATEST):
                raise AliasNotFound(f"function {name!r} has no alias {alias!r}")
            versions, weights = [latest], [1]
        bundles = await self._load(tenant_id, function_id, versions)
        if missing := set(versions) - set(bundles):
            raise VersionNotFound(f"function {name!r} has no version {missing.pop()}")
        choice = Choice([(bundles[version], weight) for version, weight in zip(versions, weights, strict=True)])
        self.bundles.put(tenant_id, target, choice, generation)
        return choice.pick()

    async def version(self, tenant_id: UUID, function_id: UUID, version: int) -> Bundle:
        """One version of a function known by its id.

        Raises:
            FunctionNotFound: it was deleted.
        """
        key = f"{function_id}@{version}"
        if known := self._versions.get(tenant_id, key):
            return known
        generation = self._versions.generation
        bundles = await self._load(tenant_id, function_id, [version])
        if version not in bundles:
            raise FunctionNotFound("the function was deleted")
        self._versions.put(tenant_id, key, Choice([(bundles[version], 1)]), generation)
        return bundles[version]

    async def _load(self, tenant_id: UUID, function_id: UUID, numbers: list[int]) -> dict[int, Bundle]:
        params = {"tenant_id": tenant_id, "function_id": function_id, "numbers": numbers}
        rows = await self._database.fetch(_SQL["runnable"], params)
        names = sorted({name for row in rows for name in row[8]})
        sealed = {secret.name: secret for secret in await self._secrets.sealed(tenant_id, names)}
        return {row[2]: _bundle(tenant_id, row, sealed) for row in rows}


def _bundle(tenant_id: UUID, row: tuple[Any, ...], sealed: dict[str, SealedSecret]) -> Bundle:
    id, name, number, source, code_hash, timeout_ms, cpu_ms, memory_mb, secrets, egress, isolation, attempts = row
    given = [sealed[secret] for secret in secrets if secret in sealed]
    limits = Limits(timeout_ms, cpu_ms, memory_mb)
    # All that the enclave keeps of it.
    content = [
        str(id),
        number,
        bytes(code_hash).hex(),
        limits,
        isolation,
        egress,
        [(secret.name, secret.version) for secret in given],
    ]
    return Bundle(
        id=hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:32],
        tenant=str(tenant_id),
        function_id=id,
        function=name,
        version=number,
        source=source,
        limits=limits,
        secrets=given,
        egress=egress,
        isolation=isolation,
        max_attempts=attempts,
    )
