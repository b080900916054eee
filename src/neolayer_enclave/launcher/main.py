"""The order in which the walls are built. See docs/enclave.md for what each prevents."""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from neolayer_enclave.launcher import kernel, landlock, namespaces, seccomp

#: Inherited descriptors: the socket to the enclave, the black box, and where `main` reports to.
SOCKET_FD, BLACK_BOX_FD, REPORT_FD = 3, 4, 5
NOBODY: Final = 65534
OOM_SCORE: Final = 800
MAX_FILES: Final = 64
#: A cell writes to its black box only.
MAX_FILE_BYTES: Final = 65_536
_CAPABILITY_VERSION: Final = 0x2008_0522
_LAST_CAPABILITY: Final = 63


class Plan(NamedTuple):
    """What to become."""

    #: Program, its arguments; as seen from the new root, if there is to be one.
    argv: list[str]
    environment: dict[str, str]
    layers: list[str]
    #: Files of control groups to write our process number into.
    groups: list[str]
    #: What of the file system stays, and where.
    binds: list[tuple[str, str]]
    read: list[str]
    execute: list[str]


class Failed(Exception):
    """A layer could not be had."""


def main() -> NoReturn:
    """Become the cell. Tells its number in a line ``pid NUMBER``, or what fails in ``error LAYER REASON``."""
    plan = Plan(*json.loads(sys.argv[1]))
    try:
        _become(plan)
    except Failed as failed:
        os.write(REPORT_FD, f"error {failed}\n".encode())
    os._exit(1)


def _become(plan: Plan) -> None:
    layers = set(plan.layers)
    os.chdir("/")
    with _layer("memory"):
        for path in plan.groups:
            Path(path).write_text("0")
    # The kernel's first choice when the machine is out of memory.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    os.set_inheritable(REPORT_FD, False)
    walls = [layer for layer in namespaces.LEFT if layer in layers]
    if walls and os.geteuid() != 0:
        with _layer(walls[0]):
            namespaces.own_users()
    for layer in walls:
        with _layer(layer):
            os.unshare(namespaces.LEFT[layer])
    if "filesystem" in layers:
        with _layer("filesystem"):
            namespaces.change_root(plan.binds)
    child = 0
    if "processes" in layers:
        with _layer("processes"):
            child = namespaces.be_alone()
    else:
        os.write(REPORT_FD, f"pid {os.getpid()}\n".encode())
    if child:
        os.write(REPORT_FD, f"pid {child}\n".encode())
        os._exit(0)
    _give_up_rights(layers)
    # After the change of user, which clears it. It also ends a cell whose main thread is stuck and would not
    # notice that its socket closed.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "rlimits" in layers:
        with _layer("rlimits"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
            resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    if "landlock" in layers:
        with _layer("landlock"):
            landlock.restrict(read=plan.read, execute=plan.execute)
    _execute(plan, filtered="seccomp" in layers)


def _give_up_rights(layers: set[str]) -> None:
    if "capabilities" in layers:
        with _layer("capabilities"):
            for capability in range(_LAST_CAPABILITY + 1):
                try:
                    kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
                except OSError:
                    # Beyond the last one of this kernel; or, as an ordinary user, of no use anyway.
                    break
    if "user" in layers and os.geteuid() == 0:
        with _layer("user"):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    if "capabilities" in layers:
        with _layer("capabilities"):
            kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
            header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
            kernel.syscall("capset", ctypes.create_string_buffer(header), ctypes.create_string_buffer(bytes(24)))
    if layers & {"no_new_privs", "landlock", "seccomp"}:
        with _layer("no_new_privs"):
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _execute(plan: Plan, *, filtered: bool) -> None:
    # Not by os.execve: the filter must know the pointer that will be passed.
    program = ctypes.c_char_p(plan.argv[0].encode())
    argv = (ctypes.c_char_p * (len(plan.argv) + 1))(*(each.encode() for each in plan.argv), None)
    pairs = [f"{name}={value}".encode() for name, value in plan.environment.items()]
    environment = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
    libc = ctypes.CDLL(None, use_errno=True)
    if filtered:
        with _layer("seccomp"):
            seccomp.deny(program)
    libc.execve(program, argv, environment)
    raise Failed(f"start {plan.argv[0]}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def _layer(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failed(f"{name} {error.strerror or error}") from error
