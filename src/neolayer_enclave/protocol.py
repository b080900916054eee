"""What host and enclave say to each other over the unix socket.

A frame is ``u32 length | u8 kind | u32 id | body``, little endian; ``length`` counts kind, id and body.
Bodies are msgpack. Many calls are in flight on one connection; replies come in any order.

Host to enclave: ``REQUEST`` (body: one of `Request`), answered under the same id by one ``RESPONSE``
(the reply struct named in each request's docstring) or one ``ERROR`` (`Failure`).

While an `Invoke` runs the enclave may ask the host for something with ``HOST_CALL`` (body: `HostCall`, id
of the enclave's own numbering), answered by ``HOST_RESULT`` (body: raw JSON bytes) or ``HOST_ERROR``
(`Failure`).

There is no request that returns a plaintext secret or a private key.
"""

import struct
from enum import IntEnum
from typing import Final

import msgspec

PROTOCOL_VERSION: Final = 1
#: What the hash of `Evidence` begins with.
ATTESTATION_DOMAIN: Final = b"neolayer/attestation/1"
#: A peer that announces a longer frame is broken or hostile; the connection is closed.
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
HEADER: Final = struct.Struct("<IBI")
#: Part of ``length`` that is not body: kind and id.
HEADER_AFTER_LENGTH: Final = 5


class Kind(IntEnum):
    REQUEST = 0
    RESPONSE = 1
    ERROR = 2
    HOST_CALL = 3
    HOST_RESULT = 4
    HOST_ERROR = 5


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all bodies: encoded as arrays, so field order is the wire format."""


class Failure(Message, frozen=True):
    """Why a request could not be served. ``code`` is stable and may reach the user."""

    code: str
    message: str
    retryable: bool = False
    #: Position in the user's source for ``syntax_error``; 1-based.
    line: int | None = None
    column: int | None = None


class Limits(Message, frozen=True):
    """Hard limits of one call of a function."""

    timeout_ms: int = 10_000
    cpu_ms: int = 1_000
    memory_mb: int = 128


class SealedSecret(Message, frozen=True):
    """A secret as the host keeps it; `Load` hands it back to the enclave."""

    name: str
    version: int
    ciphertext: bytes


# --- requests ---------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """Who is there? Answered by `Identity`."""


class Identity(Message, frozen=True):
    protocol: int
    #: ``simulated`` or the name of a hardware provider.
    provider: str
    #: secp256r1, compressed, 33 bytes.
    signing_key: bytes
    #: X25519, raw, 32 bytes.
    encryption_key: bytes
    #: SHA-256 over the measured files.
    measurement: bytes


class Attest(Message, frozen=True, tag="attest"):
    """Evidence with the caller's nonce (0–64 bytes) bound in. Answered by `Evidence`."""

    nonce: bytes


class Evidence(Message, frozen=True):
    provider: str
    #: SHA-512(`ATTESTATION_DOMAIN` ‖ nonce ‖ encryption_key ‖ signing_key ‖ measurement), 64 bytes.
    report_data: bytes
    signing_key: bytes
    encryption_key: bytes
    measurement: bytes
    #: The provider's quote. Simulated: the ECDSA/SHA-256 signature (r‖s, 64 bytes) of ``signing_key`` over
    #: ``report_data``; it proves possession of the key and nothing about hardware.
    quote: bytes


class Seal(Message, frozen=True, tag="seal"):
    """Encrypt a secret so that only this enclave reads it. Answered by `Sealed`."""

    tenant: str
    name: str
    version: int
    plaintext: bytes


class Sealed(Message, frozen=True):
    ciphertext: bytes


class CreateKey(Message, frozen=True, tag="create_key"):
    """Make a secp256r1 wallet key. Answered by `WalletKey`."""

    tenant: str
    wallet: str


class WalletKey(Message, frozen=True):
    #: Compressed, 33 bytes.
    public_key: bytes
    sealed: bytes


class SignTransaction(Message, frozen=True, tag="sign_transaction"):
    """Sign one Neo transaction; refused unless the wallet's account is among its signers.

    Answered by `Signature`. The enclave hashes ``unsigned`` itself, so that it never signs anything but a
    transaction of the named network.
    """

    tenant: str
    wallet: str
    sealed: bytes
    #: Network magic.
    network: int
    #: The serialized transaction without witnesses.
    unsigned: bytes


class Signature(Message, frozen=True):
    #: r‖s, 64 bytes.
    signature: bytes
    public_key: bytes


class Check(Message, frozen=True, tag="check"):
    """Load a source on trial, its top level included. Answered by `Checked`, or `Failure` with code
    ``syntax_error``, ``import_not_supported``, ``no_entry_point`` or ``invalid_function``."""

    tenant: str
    source: str


class Checked(Message, frozen=True):
    #: SHA-256 of the source.
    code_hash: bytes


class Load(Message, frozen=True, tag="load"):
    """Make a bundle known: immutable source, limits, egress and secrets. Answered by `Loaded`.

    The isolate is made at the first `Invoke`. ``bundle`` names exactly this content: another content needs
    another name.
    """

    tenant: str
    bundle: str
    #: Shown in stack traces as the file name of the function.
    name: str
    source: str
    limits: Limits
    secrets: list[SealedSecret]
    #: Host patterns that `fetch` may reach: ``api.example.com``, ``*.example.com``, ``host:port``.
    egress: list[str]


class Loaded(Message, frozen=True):
    pass


class Invoke(Message, frozen=True, tag="invoke"):
    """Call a loaded bundle. Answered by `Result`; `Failure` ``not_loaded`` asks for a `Load` first."""

    tenant: str
    bundle: str
    execution: str
    #: JSON text; empty means no input (``undefined``).
    input: bytes


class ErrorInfo(Message, frozen=True):
    """How a function failed. Codes: ``function_error`` (it threw), ``invalid_input``, ``invalid_output`` (not JSON
    or too large), ``timeout``, ``cpu_limit``, ``memory_limit``, ``cell_crashed``, ``invalid_function`` (fails
    while loading)."""

    code: str
    message: str
    #: Of the function's own frames only; no path of the host.
    stack: str = ""
    retryable: bool = False


class Result(Message, frozen=True):
    #: JSON text of what the function returned; ``null`` when it returned nothing. Empty when it failed.
    output: bytes
    error: ErrorInfo | None
    #: JSON text of an array of ``[ms since start, level, text]``; empty when nothing was logged.
    logs: bytes
    wall_us: int
    cpu_us: int
    #: Heap in use in the isolate after the call, external memory included; bytes.
    heap_bytes: int
    #: Whether an isolate had to be made for this call.
    cold: bool
    fetches: int = 0


class Stats(Message, frozen=True, tag="stats"):
    """Answered by `Statistics`."""


class Statistics(Message, frozen=True):
    cells: int
    isolates: int
    bundles: int
    running: int
    cells_started: int
    cells_crashed: int


type Request = Hello | Attest | Seal | CreateKey | SignTransaction | Check | Load | Invoke | Stats


class HostCall(Message, frozen=True):
    #: Frame id of the `Invoke` on whose behalf the call is made.
    request: int
    #: ``neo.read``, ``neo.wallet``, ``neo.send`` or ``functions.invoke``.
    name: str
    #: JSON text of the single argument.
    argument: bytes


encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(
    Hello | Attest | Seal | CreateKey | SignTransaction | Check | Load | Invoke | Stats
).decode


def frame(kind: Kind, id: int, body: bytes) -> bytes:
    """One frame, ready to be written."""
    return HEADER.pack(HEADER_AFTER_LENGTH + len(body), kind, id) + body
