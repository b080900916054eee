"""What host and enclave say to each other over the unix socket.

A frame is ``u32 length | u8 kind | u32 id | body``, little endian; ``length`` counts kind, id and body.
Bodies are msgpack. Many calls are in flight on one connection; replies come in any order.

Host to enclave: ``REQUEST`` (body: one of `Request`), answered under the same id by one ``RESPONSE``
(the reply struct named in each request's docstring) or one ``ERROR`` (`Failure`).

``INVOKE`` (body: `encode_invoke`) calls a function of a loaded bundle. It is answered by one ``RESULT`` (body:
`decode_result`), or by ``ERROR`` when nothing was started; code ``not_loaded`` asks for a `Load` first. These two
are not msgpack: they pass the enclave almost untouched on their way to and from the cell, thousands a second.

While a function runs the enclave may ask the host for something with ``HOST_CALL`` (body: `HostCall`, id
of the enclave's own numbering), answered by ``HOST_RESULT`` (body: raw JSON bytes) or ``HOST_ERROR``
(`Failure`).

A connection may be given away with `Direct`: then a cell is at its other end, and calls of that cell's tenant go
to it without passing this process. There it is only ``INVOKE``, ``RESULT``, ``ERROR``, ``HOST_CALL``,
``HOST_RESULT`` and ``HOST_ERROR``, whose body is the JSON text of ``{code, message}``. Ids of ``INVOKE`` are those
that `Way` grants.

There is no request that returns a plaintext secret or a private key.
"""

import struct
from enum import IntEnum
from typing import Final, Literal

import msgspec

PROTOCOL_VERSION: Final = 3
#: What the hash of `Evidence` begins with.
ATTESTATION_DOMAIN: Final = b"neolayer/attestation/1"
#: What the ``info`` of an encrypted upload begins with, see `upload_info`.
UPLOAD_DOMAIN: Final = b"neolayer/secret-upload/1"
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
    INVOKE = 6
    RESULT = 7


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
    #: Functions may fetch private addresses: development only.
    egress_allow_private: bool = False


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
    #: Of the sealing key.
    epoch: int = 0


class SealUpload(Message, frozen=True, tag="seal_upload"):
    """Seal a secret that a client encrypted to ``encryption_key``, so that no host saw it. Answered by `Sealed`,
    or `Failure` ``upload_invalid`` when it was encrypted to another key or for other names.

    ``upload`` is RFC 9180 HPKE in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM: the
    encapsulated key, 32 bytes, then ciphertext and tag. ``info`` is `upload_info`, the associated data is empty.
    """

    tenant: str
    name: str
    version: int
    upload: bytes
    epoch: int = 0


class Sealed(Message, frozen=True):
    ciphertext: bytes


class OwnedSecret(Message, frozen=True):
    tenant: str
    name: str
    version: int
    ciphertext: bytes


class Reseal(Message, frozen=True, tag="reseal"):
    """Seal secrets anew under the key of an epoch. Answered by `Resealed`."""

    epoch: int
    secrets: list[OwnedSecret]


class Resealed(Message, frozen=True):
    #: In the order of the request; null for one that does not open under its names.
    ciphertexts: list[bytes | None]


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


class SignTransactions(Message, frozen=True, tag="sign_transactions"):
    """`SignTransaction` of many, all or none. Answered by `Signatures`."""

    tenant: str
    wallet: str
    sealed: bytes
    network: int
    unsigned: list[bytes]


class Signatures(Message, frozen=True):
    #: In the order of the request; each r‖s, 64 bytes.
    signatures: list[bytes]
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

    The isolate is made at the first ``INVOKE``. ``bundle`` names exactly this content: another content needs
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
    #: Whether globals live on for the next calls of this ``version``, or each ``call`` has fresh ones.
    isolation: Literal["version", "call"] = "version"


class Loaded(Message, frozen=True):
    #: Names the bundle in ``INVOKE`` frames, to this process of the enclave only; 8 random bytes.
    handle: bytes


class Warm(Message, frozen=True, tag="warm"):
    """Make a loaded bundle's isolate ahead of its next call. Answered by `Warmed` when it is ready; `Failure`
    ``not_loaded`` asks for a `Load` first, ``invalid_function`` says that it cannot be made, ``cell_crashed`` that
    its process ended meanwhile."""

    handle: bytes


class Warmed(Message, frozen=True):
    #: Nothing had to be done.
    was_warm: bool


class Direct(Message, frozen=True, tag="direct"):
    """Give this connection to the cell in which the bundle's tenant has its functions.

    Answered by `Way`, the last frame that comes from here; `Failure` ``no_cell`` when none is up, or
    ``bad_request`` when something is under way on this connection, which then stays as it was.
    """

    handle: bytes


class Way(Message, frozen=True):
    #: Names the cell in `Fate`; of this process of the enclave.
    cell: int
    #: Ids of ``INVOKE`` frames on this connection: `DIRECT_IDS` from here on.
    first: int


class Fate(Message, frozen=True, tag="fate"):
    """What became of calls that were sent to a cell directly, now that the connection is lost? Answered by
    `Fates`."""

    cell: int
    #: By id of their ``INVOKE`` frames, with the handle of each one's bundle.
    calls: list[tuple[int, bytes]]


class Fates(Message, frozen=True):
    #: In the order of the request. Null: the call had not been begun, or nothing but its own answer came of it,
    #: because the cell was at rest when it was ended, or another call ended it before this one asked for anything.
    errors: "list[ErrorInfo | None]"


class ErrorInfo(Message, frozen=True):
    """How a function failed. Codes: ``function_error`` (it threw), ``invalid_input``, ``invalid_output`` (not JSON
    or too large), ``timeout``, ``cpu_limit``, ``memory_limit``, ``cell_crashed``, ``invalid_function`` (fails
    while loading)."""

    code: str
    message: str
    #: Of the function's own frames only; no path of the host.
    stack: str = ""
    retryable: bool = False


class Phases(msgspec.Struct, frozen=True, gc=False):
    """What a cold start took, in microseconds: what a call waited for that no warm one does."""

    #: From the call's first need of a process until that was up; 0 when there was one.
    process: int
    #: The isolate and the context with its bootstrap; 0 when they were ready.
    isolate: int
    context: int
    #: From source to script, V8's compiler, the function's top level.
    prepare: int
    compile: int
    evaluate: int
    #: The first entry, in which V8 compiles what it had put off; part of the call itself.
    first_call: int


class Result(msgspec.Struct, frozen=True, gc=False):
    """What became of a call."""

    #: JSON text of what the function returned; ``null`` when it returned nothing. Empty when it failed.
    output: bytes
    error: ErrorInfo | None
    #: JSON text of an array of ``[ms since start, level, text]``; empty when nothing was logged.
    logs: bytes
    #: In the cell, from arrival to result.
    wall_us: int
    #: Of a call that was begun again, since then.
    cpu_us: int
    #: Waited for its turn, because too many calls of the tenant were running.
    queue_us: int
    #: In use in the isolate after the call, external memory included; bytes.
    heap_bytes: int
    #: The highest that was seen during the call; sampled between its entries.
    peak_bytes: int
    #: Whether an isolate had to be made for this call.
    cold: bool
    fetches: int
    #: Of a cold start.
    phases: Phases | None = None


class Stats(Message, frozen=True, tag="stats"):
    """Answered by `Statistics`."""


class Loads(Message, frozen=True):
    """How functions became warm isolates since the enclave's start. Times are sums in microseconds."""

    #: Calls for which an isolate had to be made, and calls that found one.
    cold_starts: int = 0
    warm_starts: int = 0
    #: Isolates made ahead of calls, and in place of worn ones.
    warmed: int = 0
    worn: int = 0
    #: Cells that came up, and how long their processes took.
    processes: int = 0
    process_us: int = 0
    #: Of all isolates made: the isolate, the context with its bootstrap, the way from source to script, V8's
    #: compiler, the function's top level.
    isolate_us: int = 0
    context_us: int = 0
    prepare_us: int = 0
    compile_us: int = 0
    evaluate_us: int = 0
    #: First entries of isolates, when V8 compiles what it had put off.
    first_calls: int = 0
    first_call_us: int = 0
    #: Code cache: found; not there; refused by V8; refused for its authentication code; kept in all.
    code_hits: int = 0
    code_misses: int = 0
    code_rejected: int = 0
    code_corrupt: int = 0
    code_bytes: int = 0
    #: Isolates made because a call was expected: that then came, or did not come in time.
    predictions_right: int = 0
    predictions_wasted: int = 0


class Statistics(Message, frozen=True):
    cells: int
    isolates: int
    bundles: int
    running: int
    cells_started: int
    cells_crashed: int
    #: Blank processes that are up.
    spares: int
    #: Tenants that wait for a cell.
    waiting: int
    loads: Loads = Loads()


class Layers(Message, frozen=True, tag="layers"):
    """Which walls are around the cells? Answered by `Hardening`."""


class Layer(Message, frozen=True):
    name: str
    #: For people.
    prevents: str
    #: ``on``; ``off``: not wanted; ``unneeded``; ``unavailable``: the machine does not have it.
    state: str
    #: Why it is not on; for people.
    reason: str


class Hardening(Message, frozen=True):
    layers: list[Layer]


type Request = (
    Hello
    | Attest
    | Layers
    | Stats
    | Seal
    | SealUpload
    | Reseal
    | CreateKey
    | SignTransaction
    | SignTransactions
    | Check
    | Load
    | Warm
    | Direct
    | Fate
)


class HostCall(Message, frozen=True):
    #: Frame id of the ``INVOKE`` on whose behalf the call is made.
    request: int
    #: ``neo.read``, ``neo.wallet``, ``neo.send`` or ``functions.invoke``.
    name: str
    #: JSON text of the single argument.
    argument: bytes


encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(
    Hello
    | Attest
    | Layers
    | Stats
    | Seal
    | SealUpload
    | Reseal
    | CreateKey
    | SignTransaction
    | SignTransactions
    | Check
    | Load
    | Warm
    | Direct
    | Fate
).decode
_decode_error: Final = msgspec.json.Decoder(ErrorInfo).decode


def upload_info(tenant: str, name: str, version: int) -> bytes:
    """What an encrypted upload is bound to: domain, tenant, name and version in decimal, joined by NUL.

    Raises:
        ValueError: a part holds NUL, so that two lists of names would read the same.
    """
    if "\0" in tenant or "\0" in name:
        raise ValueError("a name holds NUL")
    return b"\0".join((UPLOAD_DOMAIN, tenant.encode(), name.encode(), b"%d" % version))


def frame(kind: Kind, id: int, body: bytes) -> bytes:
    """One frame, ready to be written."""
    return HEADER.pack(HEADER_AFTER_LENGTH + len(body), kind, id) + body


# --- invocations --------------------------------------------------------------------------------------------

HANDLE_BYTES: Final = 8
#: Ids of calls on direct connections have this bit, a cell's other calls do not. Below it are the connection's
#: number, 10 bits, and the call's. V8 keeps integers of up to 31 bits without a box.
DIRECT_BIT: Final = 0x4000_0000
DIRECT_IDS: Final = 1 << 20
DIRECT_CONNECTIONS: Final = 1 << 10
EXECUTION_BYTES: Final = 16
#: Body of ``INVOKE`` before the input: handle, depth (of calls of functions by functions), execution (a UUID), ms
#: that the call may take (0: what the bundle allows; never more than that).
INVOKE_HEAD: Final = struct.Struct("<8sB16sI")
#: Body of ``RESULT`` before the texts: queue µs | flags | fetches | isolates of the cell | wall µs | CPU µs
#: | heap | peak heap | length of the first text. All but the first field is the cell's. With flag `COLD` `PHASES`
#: follow.
RESULT_HEAD: Final = struct.Struct("<IBHHIIddI")
#: In the order of `Phases`.
PHASES: Final = struct.Struct("<7I")
QUEUE_BYTES: Final = 4
COLD: Final = 1
FAILED: Final = 2


def encode_invoke(handle: bytes, depth: int, execution: bytes, input: bytes, timeout_ms: int = 0) -> bytes:
    """Body of ``INVOKE``. ``input``: JSON text; empty means no input (``undefined``)."""
    return INVOKE_HEAD.pack(handle, depth, execution, timeout_ms) + input


def encode_failed(error: ErrorInfo, *, queue_us: int, wall_us: int, fetches: int) -> bytes:
    """Body of ``RESULT`` for a call whose cell did not live to answer."""
    text = msgspec.json.encode([error.code, error.message, error.stack, error.retryable])
    return RESULT_HEAD.pack(queue_us, FAILED, fetches, 0, wall_us, 0, 0, 0, len(text)) + text


def decode_result(body: bytes) -> Result:
    """
    Raises:
        ValueError: not the body of a ``RESULT``.
    """
    try:
        queue_us, flags, fetches, _, wall_us, cpu_us, heap, peak, length = RESULT_HEAD.unpack_from(body)
    except struct.error:
        raise ValueError("a result is too short") from None
    start = RESULT_HEAD.size
    phases = None
    if flags & COLD:
        try:
            phases = Phases(*PHASES.unpack_from(body, start))
        except struct.error:
            raise ValueError("a result of a cold start is too short") from None
        start += PHASES.size
    end = start + length
    text, logs = body[start:end], body[end:]
    failed = flags & FAILED
    return Result(
        b"" if failed else text,
        _decode_error(text) if failed else None,
        b"[%b]" % logs if logs else b"",
        wall_us,
        cpu_us,
        queue_us,
        int(heap),
        int(peak),
        phases is not None,
        fetches,
        phases,
    )
