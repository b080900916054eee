"""Runs a command without root's rights: PostgreSQL refuses to be started by root.

    python -I -S demote.py namespace COMMAND …   in a user namespace where root is called nobody
    python -I -S demote.py nobody COMMAND …      as the user nobody

A program of its own, as nothing of this may happen between fork and exec of a process with threads.
"""

import os
import sys
from pathlib import Path


def enter_namespace() -> None:
    """Files and signals stay root's; only the name changes."""
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"65534 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"65534 {gid} 1")


def become_nobody() -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)


if __name__ == "__main__":
    {"namespace": enter_namespace, "nobody": become_nobody}[sys.argv[1]]()
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the supervisor's own argument list
