"""A seccomp filter: system calls that a cell has no use for fail with EPERM. See seccomp(2).

Made by hand, as the Python bindings of libseccomp are not kept up and need the library installed.
Numbers are those of Linux' ``asm/unistd_64.h`` and ``asm-generic/unistd.h``.
"""

import ctypes
import errno
import struct

from neolayer_enclave.launcher import kernel

_FILTER = 2
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
#: Offsets in ``struct seccomp_data``.
_NUMBER, _MACHINE, _FIRST_LOW, _FIRST_HIGH = 0, 4, 16, 20
_CLONE_THREAD = 0x1_0000
#: x86-64 has a second set of numbers from here on.
_X32 = 0x4000_0000
_MACHINES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}

#: By name: number on x86-64 and on aarch64; None where it does not exist.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # The network, and sockets of any other kind: those that a cell needs are inherited.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "fork": (57, None),
    "vfork": (58, None),
    "execveat": (322, 281),
    # File systems and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # Large parts of the kernel in which holes are found again and again.
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    # The machine.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
}
_CLONE = (56, 220)
_CLONE3 = 435
_EXECVE = (59, 221)


def deny(program: ctypes.c_char_p) -> None:
    """From now on only threads are cloned, and only ``program`` is executed: this very pointer, of which the
    program that comes will not know. Needs no_new_privs.

    Raises:
        OSError: the kernel does not take filters, or numbers are not known for this processor.
    """
    if kernel.MACHINE not in _MACHINES:
        raise kernel.UnknownMachine
    machine, column = _MACHINES[kernel.MACHINE]
    pointer = ctypes.cast(program, ctypes.c_void_p).value
    assert pointer
    code = _filter(machine, column, pointer)
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    kernel.prctl(kernel.PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header, len(header)))


def _filter(machine: int, column: int, program: int) -> bytes:
    """Jumps are counted from the instruction that follows."""
    lines = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for numbers in _DENIED.values():
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    # Its arguments are in memory, where a filter cannot look: the C library falls back to clone.
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    lines += [
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_LOW),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 5, _EXECVE[column]),
        (_LOAD, 0, 0, _FIRST_LOW),
        (_EQUAL, 0, 2, program & 0xFFFF_FFFF),
        (_LOAD, 0, 0, _FIRST_HIGH),
        (_EQUAL, 1, 0, program >> 32),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
