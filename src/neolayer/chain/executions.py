"""What runs in a block, as the node tells of it before it tells of the block: so that nobody has to ask.

neo-go sends an event for each execution in the order of the chain: the block's own OnPersist, its transactions,
its PostPersist; then the block. The first one names the block, and so says what belongs to it, whatever other
block may hold the same transactions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from neolayer.chain.answers import ApplicationLog, Block, Trigger
from neolayer.chain.transport import decode
from neolayer.core.types import Hash256

#: Of one block. What goes beyond is not remembered, so that it is asked for; bytes of JSON.
MAX_BYTES: Final = 32 * 1024 * 1024

_EMPTY: Final = msgspec.Raw(b"[]")


class Execution(msgspec.Struct, frozen=True):
    """As the node writes it: most of what runs in a block is nobody's, so that it is decoded when it is wanted."""

    #: Hash of the transaction; of the block in OnPersist and PostPersist.
    container: str
    trigger: Trigger
    vmstate: str
    #: Datoshi.
    gasconsumed: str
    exception: str | None = None
    stack: msgspec.Raw = _EMPTY
    notifications: msgspec.Raw = _EMPTY

    def log(self, container: Hash256) -> ApplicationLog:
        stack = decode(self.stack)
        return ApplicationLog(
            hash=container,
            vmstate=self.vmstate,
            exception=self.exception,
            gas_consumed=int(self.gasconsumed),
            stack=stack if isinstance(stack, list) else [],
            notifications=(decode(self.notifications) or []) if self.vmstate == "HALT" else [],
            trigger=self.trigger,
        )


@dataclass(frozen=True, slots=True)
class Executions:
    """What was heard of a block's executions: all, some or nothing of them. What is missing can be asked for."""

    by_container: Mapping[str, Sequence[Execution]] = field(default_factory=dict)

    def of(self, container: Hash256, block: Block) -> Sequence[Execution] | None:
        """Of a transaction, or both of the block itself. None: not heard, or not as it must be."""
        if container == block.hash:
            return self._of(container, "OnPersist", "PostPersist")
        return self._of(container, "Application")

    def of_transaction(self, transaction: Hash256) -> ApplicationLog | None:
        """None: not heard, or not as it must be."""
        heard = self._of(transaction, "Application")
        return None if heard is None else heard[0].log(transaction)

    def _of(self, container: Hash256, *triggers: Trigger) -> Sequence[Execution] | None:
        heard = self.by_container.get(str(container), ())
        return heard if tuple(execution.trigger for execution in heard) == triggers else None


NOTHING_HEARD: Final = Executions()


class Hearing:
    """Gathers the executions of the block that a connection is telling of."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.forget()

    def forget(self) -> None:
        """Up to the first execution of another block."""
        self._block: str | None = None
        self._heard: dict[str, list[Execution]] = {}
        self._bytes = 0

    def hear(self, params: msgspec.Raw) -> None:
        """
        Args:
            params: of an event ``transaction_executed``. One that cannot be read, such as an exception's message
                with a lone surrogate, counts as not heard.
        """
        try:
            (execution,) = _read(params)
        except msgspec.DecodeError:
            return
        if execution.trigger == "OnPersist":
            self.forget()
            self._block = execution.container
        if self._block is None:
            return  # of a block whose beginning was not heard
        self._bytes += len(memoryview(params))
        if self._bytes > self._max_bytes:
            self.forget()
            return
        self._heard.setdefault(execution.container, []).append(execution)

    def take(self, block: Hash256) -> Executions:
        """What was heard of this block; after that it is forgotten."""
        heard = Executions(self._heard) if self._block == str(block) else NOTHING_HEARD
        self.forget()
        return heard


_read: Final = msgspec.json.Decoder(tuple[Execution]).decode
