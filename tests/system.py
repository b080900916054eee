"""A whole system as a user runs it: `neolayer up` in a process of its own, spoken to over HTTP."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from valkey.asyncio import Valkey

from neolayer.chain.payload import address_of
from neolayer.core.types import Hash160
from neolayer.supervisor.postgres import binaries

#: The README's receiver; nobody has its key.
RECEIVER = "Nadia4GBzUavRs1T6S9UYk8BXkPG6xVZj8"
START_TIMEOUT_S = 60.0

type NewSystem = Callable[..., Awaitable["System"]]


def new_receiver() -> str:
    """An account that no other test pays to; nobody has its key."""
    return address_of(Hash160(os.urandom(20)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class System:
    def __init__(self, home: Path, **settings: str) -> None:
        """``settings``: without the prefix, in lower case."""
        self.home = home
        self.port = free_port()
        self.rpc_url = settings.get("rpc_urls") or f"http://127.0.0.1:{(devnet_port := free_port())}"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("NEOLAYER_")} | {
            "NEOLAYER_HOME": str(home),
            "NEOLAYER_PORT": str(self.port),
            # A crashed worker's transactions are taken up soon, so that tests need not wait.
            "NEOLAYER_LEASE_S": "2",
            **{f"NEOLAYER_{name.upper()}": value for name, value in settings.items()},
        }
        if "rpc_urls" not in settings:
            self.environ["NEOLAYER_DEVNET_RPC_PORT"] = str(devnet_port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""
        #: Events of `neolayer up --json`, of the latest start.
        self.events: list[dict[str, Any]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    # --- life ---

    async def start(self) -> dict[str, Any]:
        """`neolayer up`; returns its last event, ``ready``."""
        # As many connections as are wanted: requests that wait must not keep others from being sent.
        self._session = self._session or aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
        )
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "neolayer", "up", "--json"),
            env=self.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                line = await self._process.stdout.readline()
                if not line:
                    raise RuntimeError(f"`neolayer up` ended: {self.events[-3:]}\n{self.logs()[-3000:]}")
                event = json.loads(line)
                self.events.append(event)
                if event.get("event") == "ready":
                    break
        self._reader = asyncio.create_task(self._read(self._process.stdout))
        self.key = self.key or event["api_key"]
        return event

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        while line := await stdout.readline():
            self.events.append(json.loads(line))

    async def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(15):
            code = await self._process.wait()
        if self._session:
            await self._session.close()
            self._session = None
        return code

    def processes(self) -> list[psutil.Process]:
        """Everything that `neolayer up` started for this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("NEOLAYER_SUPERVISED_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, part: str) -> None:
        """SIGKILL to the process started as `neolayer <part>`."""
        killed = [process for process in self.processes() if part in process.cmdline()]
        assert killed, f"no process {part}"
        for process in killed:
            process.kill()

    def kill_everything(self) -> None:
        """SIGKILL to the supervisor and all it started."""
        assert self._process is not None
        processes = self.processes()
        self._process.kill()
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def logs(self) -> str:
        return "".join(file.read_text(errors="replace") for file in sorted((self.home / "logs").glob("*")))

    # --- HTTP ---

    async def raw(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        url: str | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers (lower case) and the body, decoded if it is JSON."""
        assert self._session is not None
        given = {"authorization": f"Bearer {self.key}", "content-type": "application/json"} | (headers or {})
        data = io.BytesIO(body) if body else None
        async with self._session.request(method, (url or self.url) + path, data=data, headers=given) as response:
            content = await response.read()
            answer_headers = {name.lower(): value for name, value in response.headers.items()}
            if "json" in answer_headers.get("content-type", ""):
                return response.status, answer_headers, json.loads(content)
            return response.status, answer_headers, content.decode()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        status: int | None = 200,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """``status``: what is expected; None for any below 400. PUT and POST of JSON below ``/api/v1``."""
        given = dict(headers or {})
        if key is not None:
            given["authorization"] = f"Bearer {key}"
        data = b"" if body is None else json.dumps(body).encode()
        got, _, answer = await self.raw(method, "/api/v1" + path, body=data, headers=given)
        assert got == status or (status is None and got < 400), f"{method} {path}: {got} {answer}"
        return answer

    async def get(self, path: str, *, key: str | None = None, status: int = 200, **params: Any) -> Any:
        query = "&".join(f"{name}={value}" for name, value in params.items() if value is not None)
        return await self.request("GET", f"{path}?{query}", key=key, status=status)

    async def post(self, path: str, body: Any, *, status: int = 200, **options: Any) -> Any:
        return await self.request("POST", path, body, status=status, **options)

    # --- functions ---

    async def invoke(self, name: str, input: Any = None, *, key: str | None = None) -> tuple[Any, str]:
        """Output and id of the execution."""
        body = b"" if input is None else json.dumps(input).encode()
        headers = {"authorization": f"Bearer {key or self.key}"}
        status, answer_headers, output = await self.raw(
            "POST", f"/api/v1/functions/{name}/invoke", body=body, headers=headers
        )
        assert status == 200, output
        return output, answer_headers["neolayer-execution"]

    async def invoke_any(self, name: str) -> tuple[int, Any]:
        status, _, answer = await self.raw("POST", f"/api/v1/functions/{name}/invoke")
        return status, answer

    async def invoke_fails(self, name: str) -> dict[str, Any]:
        """The problem that a call of a failing function answers with."""
        status, problem = await self.invoke_any(name)
        assert status == 422, (status, problem)
        return dict(problem)

    # --- transactions ---

    async def transfer(
        self,
        wallet: str,
        to: str,
        datoshi: int,
        *,
        sender: str | None = None,
        idempotency_key: str | None = None,
        status: int | None = 202,
        **settings: Any,
    ) -> Any:
        """A GAS transfer by the API.

        Args:
            sender: the wallet's address, for those who know it and measure.
        """
        sender = sender or (await self.get(f"/wallets/{wallet}"))["address"]
        call = {
            "contract": "GasToken",
            "method": "transfer",
            "args": [
                {"type": "Hash160", "value": sender},
                {"type": "Hash160", "value": to},
                {"type": "Integer", "value": str(datoshi)},
                {"type": "Any", "value": None},
            ],
        }
        headers = {"idempotency-key": idempotency_key} if idempotency_key else None
        body = {"wallet": wallet, "calls": [call], **settings}
        return await self.request("POST", "/transactions", body, status=status, headers=headers)

    @asynccontextmanager
    async def news(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What the stream of events tells of transactions from now on, each as its data."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            headers = {"authorization": f"Bearer {self.key}"}
            async with session.get(f"{self.url}/api/v1/events", headers=headers) as response:
                assert response.status == 200
                lines = response.content
                await lines.readuntil(b"\n\n")  # where it begins: it is under way

                async def told() -> AsyncIterator[dict[str, Any]]:
                    event = b""
                    async for line in lines:
                        if line.startswith(b"event: "):
                            event = line[7:].strip()
                        elif line.startswith(b"data: ") and event == b"transaction":
                            yield json.loads(line[6:])

                yield told()

    async def settled(self, id: str, timeout_s: float = 45) -> Any:
        """The transaction once its state is final."""
        async with asyncio.timeout(timeout_s):
            while True:
                view = await self.get(f"/transactions/{id}")
                if view["state"] not in ("queued", "signed", "sent"):
                    return view
                await asyncio.sleep(0.1)

    async def scale_workers(self, count: int) -> None:
        """As an operator does."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "neolayer", "workers", "scale", str(count)),
            env=self.environ,
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0

    async def ready(self, *, expect: bool = True) -> bool:
        status, _, _ = await self.raw("GET", "/health/ready")
        return (status == 200) == expect

    # --- behind the API's back ---

    async def rpc(self, method: str, *params: Any) -> Any:
        """Straight to the node."""
        assert self._session is not None
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with self._session.post(self.rpc_url, json=request) as response:
            answer = await response.json(content_type=None)
        assert "result" in answer, answer
        return answer["result"]

    async def gas_of(self, address: str) -> int:
        """Datoshi, as the node says."""
        balances = (await self.rpc("getnep17balances", address))["balance"]
        gas = "0xd2a4cff31913016155e38e474a2c06d08be276cf"
        return next((int(balance["amount"]) for balance in balances if balance["assethash"] == gas), 0)

    @property
    def database_url(self) -> str:
        ready = next(event for event in reversed(self.events) if event.get("event") == "ready")
        return str(ready["database_url"])

    async def dump(self) -> str:
        """Everything in the database, as pg_dump writes it."""
        await self.get("/executions")  # waits for records that are on their way
        dump = await asyncio.to_thread(
            subprocess.run,
            [str(binaries() / "pg_dump"), self.database_url],
            check=True,
            capture_output=True,
            text=True,
        )
        return dump.stdout

    @property
    def environ_of_parts(self) -> dict[str, str]:
        """What a process needs that runs beside this system on the same parts."""
        return self.environ | {
            "NEOLAYER_DATABASE_URL": self.database_url,
            "NEOLAYER_VALKEY_URL": self.valkey_url,
            "NEOLAYER_RPC_URLS": self.rpc_url,
            "NEOLAYER_ENCLAVE_SOCKET": str(self.home / "run" / "enclave.sock"),
        }

    @property
    def valkey_url(self) -> str:
        return f"unix://{self.home}/run/valkey.sock"

    async def forget_failed_logins(self) -> None:
        valkey = Valkey.from_url(self.valkey_url)
        await valkey.flushdb()
        await valkey.aclose()

    async def new_tenant(self, name: str) -> str:
        """Another tenant, made as an operator makes one; returns its API key."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "neolayer", "tenants", "create", name, "--json"),
            env=self.environ,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return str(json.loads(out)["api_key"])

    @staticmethod
    async def eventually(condition: Callable[[], Any], timeout_s: float = 20) -> None:
        """Wait until a condition, which may be a coroutine function, holds."""
        async with asyncio.timeout(timeout_s):
            while True:
                held = condition()
                if asyncio.iscoroutine(held):
                    held = await held
                if held:
                    return
                await asyncio.sleep(0.05)
