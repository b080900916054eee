"""What a hardened process really can do: a Python that stands in for a Node that was taken over.

It is launched through the same launcher, with the same layers, binds and filters; only the program differs.
"""

import asyncio
import json
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from neolayer_enclave.hardening import Hardening
from neolayer_enclave.launcher.plan import Plan
from neolayer_enclave.process import CellProcess

#: Each try says ``ok`` or the name of the error that stopped it.
ATTACKS = """
import ctypes, errno, json, os, signal, socket, subprocess, sys
enclave = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

def connect():
    with socket.socket() as s:
        s.settimeout(2)
        s.connect(("127.0.0.1", int(sys.argv[2])))

def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", 9))

def unix():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("/run/nobody-listens")

def read_passwd():
    open("/etc/passwd").read()

def write():
    open(sys.argv[3] + "/written", "w").write("x")

def write_root():
    open("/written", "w").write("x")

def remount():
    called(libc.mount(b"none", b"/", b"", 32 | 4096, None))

def spawn():
    subprocess.run(["/bin/true"], check=True)

def fork():
    if os.fork() == 0:
        os._exit(0)
    os.wait()

def execute():
    os.execv(sys.executable, ["python", "-I", "-S", "-c", "import os; os.write(3, b'{\\"execute\\": \\"ok\\"}')"])

def trace():
    # PTRACE_SEIZE: unlike an attachment it does not stop who is traced.
    called(libc.ptrace(0x4206, enclave, 0, 0))

def enclave_memory():
    open(f"/proc/{enclave}/mem", "rb").read(1)

def enclave_memory_directly():
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    called(libc.process_vm_readv(enclave, vector, 1, vector, 1, 0))

def signal_enclave():
    os.kill(enclave, 0)

def become_root():
    os.setuid(0)

def namespaces():
    os.unshare(os.CLONE_NEWUSER)

def load_bpf():
    called(libc.syscall(321 if os.uname().machine == "x86_64" else 280, 0, 0, 0))

def io_uring():
    called(libc.syscall(425, 8, ctypes.create_string_buffer(256)))

def many_files():
    opened = []
    try:
        for _ in range(200):
            opened.append(os.dup(0))
    finally:
        for each in opened:
            os.close(each)

def big_file():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    memory = os.memfd_create("x")
    os.pwrite(memory, b"x", 1 << 20)

answers = {}
for name, attack in [(n, f) for n, f in globals().items() if callable(f) and n not in ("called", "execute")
                     and getattr(f, "__module__", "") == "__main__"]:
    try:
        attack()
        answers[name] = "ok"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, str(error))
    except subprocess.SubprocessError as error:
        answers[name] = "failed"
answers["ids"] = [os.getuid(), os.getgid(), os.getgroups()]
answers["pid"] = os.getpid()
answers["no_new_privs"] = libc.prctl(39, 0, 0, 0, 0)
answers["seccomp"] = libc.prctl(21, 0, 0, 0, 0)
os.write(3, (json.dumps(answers) + "\\n").encode())
try:
    execute()
except OSError as error:
    os.write(3, json.dumps({"execute": errno.errorcode.get(error.errno)}).encode())
"""


async def attack(hardening: Hardening, enclave: int, port: int) -> dict[str, Any]:
    """Try everything from inside; name of the attack to ``ok`` or what stopped it."""
    plan = hardening._plan()
    home = Path(sys.base_prefix)
    python = str(Path(sys.executable).resolve())
    folder = tempfile.mkdtemp()
    Path(folder).chmod(0o777)
    library = str(Path(sysconfig.get_path("stdlib")))
    plan = Plan(
        [python, "-I", "-S", "-c", ATTACKS, str(enclave), str(port), folder],
        {},
        plan.layers,
        [],
        [(python, python), (library, library), *((each, each) for each in _libraries(python))],
        [library, str(home / "lib")] if "filesystem" not in plan.layers else [library],
        [python, *_libraries(python)],
    )
    ended = asyncio.Event()
    process = CellProcess(plan, hardening.ceilings, lambda _: ended.set())
    process.socket.setblocking(False)
    said = b""
    with process.socket:
        while chunk := await asyncio.get_running_loop().sock_recv(process.socket, 65_536):
            said += chunk
        await process.ended
    assert said, process.last_words()
    answers: dict[str, Any] = {}
    for line in said.splitlines():
        answers |= json.loads(line)
    return answers


def _libraries(program: str) -> list[str]:
    import subprocess

    listed = subprocess.run(
        [program], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=True
    ).stdout
    paths = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    # What the extension modules of the probe need on top.
    extra = [str(path) for name in ("libffi.so", "libffi.so.8", "libffi.so.7") for path in _found(name)]
    return [*dict.fromkeys([*paths, *extra, "/etc/ld.so.cache"])]


def _found(name: str) -> list[Path]:
    folders = [
        Path("/lib"),
        Path("/usr/lib"),
        *Path("/usr/lib").glob("*-linux-gnu"),
        *Path("/lib").glob("*-linux-gnu"),
    ]
    return [folder / name for folder in folders if (folder / name).exists()]
