"""The order in which the walls are built. See docs/enclave.md for what each prevents."""

import ctypes
import marshal
import os
import resource
import struct
import sys

from neolayer_enclave.launcher import kernel, landlock, namespaces, seccomp

#: Inherited descriptors: the socket to the enclave, the black box, where `main` reports to, and the channel by
#: which the enclave hands over connections.
SOCKET_FD, BLACK_BOX_FD, REPORT_FD, CHANNEL_FD = 3, 4, 5, 6
NOBODY = 65534
OOM_SCORE = 800
MAX_FILES = 64
#: A cell writes to its black box only.
MAX_FILE_BYTES = 65_536
_CAPABILITY_VERSION = 0x2008_0522
_LAST_CAPABILITY = 63
_SIGKILL = 9


class Failed(Exception):
    """A layer could not be had."""


def main() -> None:
    """Become the cell. Tells its number in a line ``pid NUMBER``, or what fails in ``error LAYER REASON``."""
    try:
        _become(*marshal.loads(bytes.fromhex(sys.argv[1])))  # noqa: S302 - from the enclave itself
    except Failed as failed:
        os.write(REPORT_FD, f"error {failed}\n".encode())
    os._exit(1)


def _become(
    argv: list[str],
    environment: dict[str, str],
    chosen: list[str],
    groups: list[str],
    binds: list[tuple[str, str]],
    read: list[str],
    execute: list[str],
) -> None:
    """The members of a `Plan`."""
    layers = set(chosen)
    os.chdir("/")
    with _layer("memory"):
        for path in groups:
            kernel.write(path, "0")
    # The kernel's first choice when the machine is out of memory.
    try:  # noqa: SIM105 - contextlib takes long to import
        kernel.write("/proc/self/oom_score_adj", str(OOM_SCORE))
    except OSError:
        # Not in every container; it protects others, not the cell.
        pass
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
            namespaces.change_root(binds)
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
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "rlimits" in layers:
        with _layer("rlimits"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
            resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    if "landlock" in layers:
        with _layer("landlock"):
            landlock.restrict(read=read, execute=execute)
    _execute(argv, environment, filtered="seccomp" in layers)


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


def _execute(arguments: list[str], variables: dict[str, str], *, filtered: bool) -> None:
    # Not by os.execve: the filter must know the pointer that will be passed.
    program = ctypes.c_char_p(arguments[0].encode())
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*(each.encode() for each in arguments), None)
    pairs = [f"{name}={value}".encode() for name, value in variables.items()]
    environment = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
    libc = ctypes.CDLL(None, use_errno=True)
    if filtered:
        with _layer("seccomp"):
            seccomp.deny(program)
    libc.execve(program, argv, environment)
    raise Failed(f"start {arguments[0]}: {os.strerror(ctypes.get_errno())}")


class _layer:  # noqa: N801 - reads as the statement it is
    """Of which layer an error inside is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise Failed(f"{self._name} {error.strerror or error}") from error
