"""Landlock: a list of what a process may open, kept by the kernel. See landlock(7)."""

import os
import struct
from ctypes import create_string_buffer

from neolayer_enclave.launcher import kernel

_EXECUTE = 1 << 0
_READ_FILE = 1 << 2
_READ_DIRECTORY = 1 << 3
#: How many rights to files each version of the interface knows.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16
_TCP_RIGHTS = 0b11
_TCP_SINCE = 4
#: Abstract unix sockets and signals, of processes outside.
_SCOPES = 0b11
_SCOPES_SINCE = 6
_VERSION = 1
_PATH_BENEATH = 1


def restrict(*, read: list[str], execute: list[str]) -> None:
    """Open nothing but these paths and what is below them; no TCP; no signals out. Needs no_new_privs.

    Raises:
        OSError: this kernel has no Landlock, or does not let it be used.
    """
    version = kernel.syscall("landlock_create_ruleset", None, 0, _VERSION)
    rights = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_NOW)) - 1
    attributes = [rights]
    if version >= _TCP_SINCE:
        attributes.append(_TCP_RIGHTS)
    if version >= _SCOPES_SINCE:
        attributes.append(_SCOPES)
    encoded = struct.pack(f"={len(attributes)}Q", *attributes)
    rules = kernel.syscall("landlock_create_ruleset", create_string_buffer(encoded, len(encoded)), len(encoded), 0)
    for path, allowed in [(path, _READ_FILE | _READ_DIRECTORY) for path in read] + [
        (path, _READ_FILE | _EXECUTE) for path in execute
    ]:
        opened = os.open(path, os.O_PATH)
        if not os.path.isdir(path):
            allowed &= ~_READ_DIRECTORY
        rule = struct.pack("=Qi", allowed, opened)
        kernel.syscall("landlock_add_rule", rules, _PATH_BENEATH, create_string_buffer(rule, len(rule)), 0)
        os.close(opened)
    kernel.syscall("landlock_restrict_self", rules, 0)
    os.close(rules)
