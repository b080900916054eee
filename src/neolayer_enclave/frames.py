"""Frames on a byte stream, towards the host and towards the cells; the layout is `protocol`'s."""

import asyncio
import logging
from typing import Final, cast

from neolayer_enclave.protocol import HEADER, HEADER_AFTER_LENGTH, MAX_FRAME_BYTES

_HEADER_BYTES: Final = HEADER.size
_LENGTH_BYTES: Final = _HEADER_BYTES - HEADER_AFTER_LENGTH
#: A peer that lets this much pile up does not read; it is cut off.
MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class FramePeer(asyncio.Protocol):
    """One end of a connection. Subclasses say what a frame means and what the end of the connection does.

    A frame that is too short, too long or not understood closes the connection: there is no way to resume.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._partial = bytearray()

    @property
    def partial(self) -> bool:
        """Whether the beginning of a frame has come whose end has not."""
        return bool(self._partial)

    def frame_received(self, kind: int, id: int, body: bytes) -> None:
        """Raises ValueError for a frame that makes no sense."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection is gone, whoever closed it. Called once."""
        raise NotImplementedError

    def send(self, kind: int, id: int, *parts: bytes) -> None:
        """Write one frame; dropped when the connection is gone. uvloop joins the writes of one turn."""
        if self.transport is not None:
            length = HEADER_AFTER_LENGTH + sum(map(len, parts))
            self.transport.write(b"".join((HEADER.pack(length, kind, id), *parts)))

    def finish(self) -> None:
        """Close when everything is written."""
        if self.transport is not None:
            self.transport.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=MAX_UNREAD_BYTES)

    def pause_writing(self) -> None:
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._partial = bytearray()
        self.lost()

    def data_received(self, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if self._partial:
            self._partial += data
            buffer = self._partial
        at, end = 0, len(buffer)
        while end - at >= _HEADER_BYTES:
            length, kind, id = HEADER.unpack_from(buffer, at)
            if not HEADER_AFTER_LENGTH <= length <= MAX_FRAME_BYTES:
                self.close()
                return
            stop = at + _LENGTH_BYTES + length
            if stop > end:
                break
            try:
                self.frame_received(kind, id, bytes(buffer[at + _HEADER_BYTES : stop]))
            except ValueError:
                self.close()
                return
            except Exception:
                # Of a cell: the body is not what its kind says.
                _log.exception("a frame of kind %d makes no sense", kind)
                self.close()
                return
            at = stop
        if buffer is data:
            self._partial = bytearray(data[at:])
        else:
            del self._partial[:at]
