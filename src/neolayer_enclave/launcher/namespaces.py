"""A network, a file system and process numbers of the cell's own, with nothing in them."""

import os

from neolayer_enclave.launcher import kernel

#: Where the new root is put together; any folder that exists everywhere.
_STAGE = "/tmp"  # noqa: S108 - a mount point in a name space of our own
#: What each layer leaves, and for process numbers see `be_alone`.
LEFT = {
    "network": os.CLONE_NEWNET,
    "filesystem": os.CLONE_NEWNS,
    "processes": os.CLONE_NEWIPC | os.CLONE_NEWUTS,
}


def own_users() -> None:
    """Enter a user namespace, where our user stays who it is: an ordinary user gets the right to the others."""
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER)
    kernel.write("/proc/self/setgroups", "deny")
    kernel.write("/proc/self/uid_map", f"{uid} {uid} 1")
    kernel.write("/proc/self/gid_map", f"{gid} {gid} 1")


def be_alone() -> int:
    """Fork into a namespace of process numbers, as a child of our parent. Returns the child's number; 0 in it."""
    return kernel.syscall("clone", kernel.CLONE_NEWPID | kernel.CLONE_PARENT, None, None, None, None)


def change_root(binds: list[tuple[str, str]]) -> None:
    """See nothing but ``binds``, pairs of what and where, read-only."""
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    # Opened first: the stage may hide them.
    sources = [(os.open(source, os.O_PATH), target) for source, target in binds]
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("root", _STAGE, "tmpfs", flags, "mode=0755,size=64k")
    for source, target in sources:
        at = _STAGE + target
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{source}"):
            os.makedirs(at, exist_ok=True)
        else:
            os.close(os.open(at, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.mount(f"/proc/self/fd/{source}", at, "", kernel.MS_BIND)
        kernel.mount("none", at, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | flags)
        os.close(source)
    kernel.mount("none", _STAGE, "", kernel.MS_REMOUNT | kernel.MS_RDONLY | flags, "mode=0755,size=64k")
    os.chdir(_STAGE)
    kernel.syscall("pivot_root", b".", b".")
    kernel.unmount(".", kernel.MNT_DETACH)
    os.chdir("/")
