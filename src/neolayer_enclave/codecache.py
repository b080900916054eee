"""V8's code cache of functions, kept in files across restarts.

It is machine code that a cell runs unseen, so an entry counts only with the enclave's own authentication code over
its name and content: neither a changed nor an exchanged file comes through. A name covers the tenant: what the
cell of one tenant made is never run in the cell of another.
"""

import hashlib
import hmac
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

FOLDER: Final = "code"
MAC_BYTES: Final = 32
#: Of all entries together; the one unused for longest goes.
MOST_BYTES: Final = 256 * 1024 * 1024

_log = logging.getLogger(__name__)


class CodeCache:
    """Entries by name; losing one only costs time, so nothing here is fatal.

    Args:
        key: 32 bytes that only this enclave has.
        engine: all that must be the same where code is made and where it is used.
    """

    def __init__(self, folder: Path, key: bytes, engine: bytes, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._key = key
        self._engine = engine
        self._most_bytes = most_bytes
        #: Sizes of the files, the most recently used last.
        self._entries: OrderedDict[str, int] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.corrupt = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scan()

    def name(self, tenant: str, source: bytes) -> str:
        """Of the entry for a tenant's source."""
        parts = (self._engine, hashlib.sha256(tenant.encode()).digest(), hashlib.sha256(source).digest())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def has(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> bytes | None:
        """The content of an entry, if there is one that this enclave wrote."""
        path = self._folder / name
        try:
            raw = path.read_bytes() if name in self._entries else None
        except OSError:
            raw = None
        if raw is None:
            self.misses += 1
            self._forget(name)
            return None
        if not hmac.compare_digest(raw[:MAC_BYTES], self._mac(name, raw[MAC_BYTES:])):
            _log.warning("an entry of the code cache is damaged and is dropped: %s", name)
            self.corrupt += 1
            self.drop(name)
            return None
        self.hits += 1
        self._entries.move_to_end(name)
        # Its age in the eyes of the next start.
        try:
            os.utime(path)
        except OSError:
            self._forget(name)
        return raw[MAC_BYTES:]

    def put(self, name: str, content: bytes) -> None:
        """Keep an entry, as a whole or not at all; an older one of this name goes."""
        size = MAC_BYTES + len(content)
        if size > self._most_bytes:
            return
        draft = self._folder / f".{name}.{os.getpid()}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._mac(name, content))
                file.write(content)
            # Without fsync: what a crash damages is found out by its authentication code.
            draft.replace(self._folder / name)
        except OSError as error:
            _log.warning("the code cache cannot be written: %s", error)
            draft.unlink(missing_ok=True)
            return
        self._forget(name)
        self._entries[name] = size
        self.bytes += size
        while self.bytes > self._most_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, name: str) -> None:
        self._forget(name)
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("an entry of the code cache cannot be removed: %s", error)

    def _forget(self, name: str) -> None:
        self.bytes -= self._entries.pop(name, 0)

    def _scan(self) -> None:
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith("."):
                # A draft of a process that was killed.
                Path(entry.path).unlink(missing_ok=True)
            else:
                status = entry.stat()
                found.append((status.st_mtime_ns, entry.name, status.st_size))
        for _, name, size in sorted(found):
            self._entries[name] = size
            self.bytes += size
        while self.bytes > self._most_bytes:
            self.drop(next(iter(self._entries)))

    def _mac(self, name: str, content: bytes) -> bytes:
        mac = hmac.new(self._key, name.encode(), hashlib.sha256)
        mac.update(content)
        return mac.digest()
