"""How a function becomes a warm isolate: what the cells are told and keep for it, and what it took."""

import asyncio
import contextlib
import hashlib
import logging
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from neolayer_enclave.codecache import CodeCache
from neolayer_enclave.protocol import Loads

if TYPE_CHECKING:
    from neolayer_enclave.bundle import Bundle

RUNNER: Final = Path(__file__).parent / "runner"
#: The same where code is made and where it is used: V8 refuses code made under other flags. Chosen by
#: measurement, see docs/decisions/0006-v8-flags.md.
#: ``--no-node-snapshot``: isolated-vm's isolates and Node's own must not start from different snapshots.
NODE_FLAGS: Final = (
    "--no-node-snapshot",
    "--no-sparkplug",
    "--no-short-builtin-calls",
    "--max-semi-space-size=1",
)
#: Built by ``runner/build.mjs`` when a checkout is set up: the cell's program, and what its isolates run first.
CELL: Final = RUNNER / "built" / "cell.cjs"
BOOTSTRAP: Final = RUNNER / "built" / "bootstrap.js"
#: Makes the bootstrap's code cache; prints it.
BOOTSTRAP_MAKER: Final = RUNNER / "bootstrap-code.mjs"
BOOTSTRAP_MAKER_S: Final = 30.0

#: Key and nonce of ChaCha20, from which a cell makes the seeds of its isolates' random numbers.
SEED_BYTES: Final = 40
KEEP_CODE: Final = 1
WARM_UP: Final = 2
FORM_SOURCE: Final = b"\x00"
FORM_CHECKED: Final = 1
OPTIONS_HEAD: Final = struct.Struct("<Bd")
LOADED: Final = struct.Struct("<BB5I")
BY_CALL, BY_WARM_UP, WORN = range(3)
CODE_USED, CODE_REJECTED = 1, 2

_log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who expects calls, see `warmup`."""

    right: int
    wasted: int

    def called(self, bundle: "Bundle") -> None: ...


class Loading:
    """Shared by all cells. Without ``code`` every isolate compiles its source."""

    def __init__(self, node: Path, code: CodeCache | None, *, warm_up: bool) -> None:
        self._node = node
        self._code = code
        self.warm_up = warm_up
        self._bootstrap = b""
        self._made = dict.fromkeys((BY_CALL, BY_WARM_UP, WORN), 0)
        self._phases_us = [0, 0, 0, 0, 0]
        self._rejected = 0
        self._first_us = 0
        self._firsts = 0
        self._processes = 0
        self._process_us = 0
        self._calls = 0
        #: Told of every call.
        self.watcher: Watcher | None = None

    async def open(self) -> None:
        """Have the bootstrap's code cache ready; it is made by a process in which no tenant's code runs."""
        if self._code is None:
            return
        name = self._code.name("", b"bootstrap")
        if self._code.has(name) and (kept := self._code.get(name)):
            self._bootstrap = kept
            return
        try:
            self._bootstrap = await _made_bootstrap(self._node)
        except (OSError, TimeoutError) as error:
            _log.warning("the bootstrap has no code cache: %s", error)
        else:
            self._code.put(name, self._bootstrap)

    def options(self, waiting_since: float) -> bytes:
        """Body of a cell's OPTIONS frame.

        Args:
            waiting_since: when its first call began to wait for the process, `time.monotonic`; 0 if none does.
        """
        flags = (KEEP_CODE if self._code else 0) | (WARM_UP if self.warm_up else 0)
        return OPTIONS_HEAD.pack(flags, waiting_since * 1000) + os.urandom(SEED_BYTES) + self._bootstrap

    def program(self, tenant: str, source: bytes) -> bytes:
        """The last part of a LOAD frame: what was kept of this source, or the source."""
        kept = self._code and self._code.get(self._code.name(tenant, source))
        return kept or FORM_SOURCE + source

    def keep(self, tenant: str, source: bytes, program: bytes) -> None:
        """A cell has made this of a tenant's source. What has been exercised is not replaced by what has not."""
        if self._code is None:
            return
        name = self._code.name(tenant, source)
        if not program[0] & FORM_CHECKED or not self._code.has(name):
            self._code.put(name, program)

    def called(self, bundle: "Bundle", calls: int = 1) -> None:
        """So many calls of a bundle came just now."""
        self._calls += calls
        if self.watcher:
            self.watcher.called(bundle)

    def loaded(self, tenant: str, source: bytes, body: bytes) -> None:
        """A cell has made an isolate."""
        why, code, *phases_us = LOADED.unpack(body)
        self._made[why] += 1
        self._phases_us = [sum(pair) for pair in zip(self._phases_us, phases_us, strict=True)]
        if code == CODE_REJECTED:
            self._rejected += 1
            if self._code:
                self._code.drop(self._code.name(tenant, source))

    def first(self, body: bytes) -> None:
        """The first entry of a new isolate is over."""
        self._firsts += 1
        self._first_us += int.from_bytes(body, "little")

    def up(self, body: bytes) -> None:
        """The process of a cell is ready."""
        self._processes += 1
        self._process_us += int.from_bytes(body, "little")

    def statistics(self) -> Loads:
        code = self._code
        cold = self._made[BY_CALL]
        isolate_us, context_us, prepare_us, compile_us, evaluate_us = self._phases_us
        return Loads(
            cold_starts=cold,
            warm_starts=max(0, self._calls - cold),
            warmed=self._made[BY_WARM_UP],
            worn=self._made[WORN],
            processes=self._processes,
            process_us=self._process_us,
            isolate_us=isolate_us,
            context_us=context_us,
            prepare_us=prepare_us,
            compile_us=compile_us,
            evaluate_us=evaluate_us,
            first_calls=self._firsts,
            first_call_us=self._first_us,
            code_hits=code.hits if code else 0,
            code_misses=code.misses if code else 0,
            code_rejected=self._rejected,
            code_corrupt=code.corrupt if code else 0,
            code_bytes=code.bytes if code else 0,
            predictions_right=self.watcher.right if self.watcher else 0,
            predictions_wasted=self.watcher.wasted if self.watcher else 0,
        )


async def _made_bootstrap(node: Path) -> bytes:
    process = await asyncio.create_subprocess_exec(
        node, *NODE_FLAGS, BOOTSTRAP_MAKER, stdout=asyncio.subprocess.PIPE, env={}, cwd="/"
    )
    try:
        async with asyncio.timeout(BOOTSTRAP_MAKER_S):
            made, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode != 0:
        raise OSError(f"its maker ended with {process.returncode}")
    return made


def engine(node: Path) -> bytes:
    """Stands for the Node binary, its flags and the runner's files in the names of code."""
    status = node.stat()
    total = hashlib.sha256(repr((NODE_FLAGS, status.st_size, status.st_mtime_ns)).encode())
    for path in (BOOTSTRAP, CELL, *sorted(RUNNER.iterdir())):
        if path.suffix in (".js", ".cjs", ".mjs") or path.name == "package-lock.json":
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.digest()
