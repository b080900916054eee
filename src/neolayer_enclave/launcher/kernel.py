"""System calls that Python has no function for."""

import ctypes
import os

#: As `platform.machine` says, which takes longer to import than everything here.
MACHINE = os.uname().machine
_LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLONE_PARENT = 0x8000
CLONE_NEWPID = 0x2000_0000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

#: Numbers of the system calls made from here; those from 424 on are the same everywhere.
_NUMBERS = {
    "x86_64": {"clone": 56, "capset": 126, "pivot_root": 155},
    "aarch64": {"clone": 220, "capset": 91, "pivot_root": 41},
}
_NEW_NUMBERS = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}


class UnknownMachine(OSError):
    """The numbers of this processor's system calls are not known here."""

    def __init__(self) -> None:
        super().__init__(0, f"not known for {MACHINE} processors")


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _long(value: int | bytes | ctypes.Array[ctypes.c_char] | None) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def syscall(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """
    Raises:
        OSError: it failed.
    """
    number = _NEW_NUMBERS.get(name) or _NUMBERS.get(MACHINE, {}).get(name)
    if number is None:
        raise UnknownMachine
    return _checked(_LIBC.syscall(ctypes.c_long(number), *map(_long, arguments)))


def prctl(option: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
    """
    Raises:
        OSError: it failed.
    """
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_LIBC.prctl(option, *map(_long, padded)))


def write(path: str, text: str) -> None:
    """
    Raises:
        OSError: it failed.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """
    Raises:
        OSError: it failed; names the target.
    """
    data = options.encode() if options else None
    try:
        _checked(_LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data))
    except OSError as error:
        raise OSError(error.errno, f"mount on {target}: {error.strerror}") from None


def unmount(target: str, flags: int) -> None:
    """
    Raises:
        OSError: it failed.
    """
    _checked(_LIBC.umount2(target.encode(), flags))
