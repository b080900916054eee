"""What `crypto.subtle` of the functions computes: digests, HMAC, and the verification of ECDSA on P-256.

The isolate decides which arguments make sense (``runner/bootstrap/subtle.js``); here they are checked only as far
as bytes from a cell must be. Keys come with each operation and are not kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

#: What is computed between two frames; more (0.1 ms and up) goes to a thread.
INLINE_BYTES: Final = 64 * 1024
#: Of one call of a function: it does not pay for this time itself.
MAX_OPERATIONS: Final = 1_000
MAX_DATA_BYTES: Final = 64 * 1024 * 1024
COORDINATE_BYTES: Final = 32
TRUE: Final = b"\x01"
FALSE: Final = b"\x00"
#: SHA-1 is for what others still sign with it, such as webhooks; WebCrypto has it.
HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "SHA-1": hashes.SHA1,
    "SHA-256": hashes.SHA256,
    "SHA-384": hashes.SHA384,
    "SHA-512": hashes.SHA512,
}


class Refused(Exception):
    """``name`` is that of the DOMException which the function gets."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Operation(msgspec.Struct, frozen=True):
    op: Literal["digest", "sign", "verify", "verify-p256", "import-raw", "import-spki"]
    #: WebCrypto's name; empty for imports.
    hash: str
    #: Of the leading parts of the data; the last part is the rest.
    lengths: list[int]


#: From JSON; raises `msgspec.DecodeError`.
decode: Final = msgspec.json.Decoder(Operation).decode


@dataclass(slots=True)
class Budget:
    """What one call of a function has computed."""

    operations: int = 0
    data_bytes: int = 0

    def spend(self, data_bytes: int) -> None:
        """Raises `Refused` when it is too much for one call."""
        self.operations += 1
        self.data_bytes += data_bytes
        if self.operations > MAX_OPERATIONS or self.data_bytes > MAX_DATA_BYTES:
            raise Refused(
                "QuotaExceededError",
                f"a call may make {MAX_OPERATIONS} operations of crypto.subtle on {MAX_DATA_BYTES >> 20} MB",
            )


def compute(operation: Operation, data: bytes) -> bytes:
    """The result's bytes: a digest, a signature, an uncompressed point, or `TRUE` and `FALSE`.

    Raises:
        Refused: the arguments make no sense, or a key is none.
    """
    *leading, message = _split(data, operation.lengths)
    match operation.op, leading:
        case "digest", []:
            digest = hashes.Hash(_hash(operation.hash))
            digest.update(message)
            return digest.finalize()
        case "sign", [key]:
            return _hmac(key, operation.hash, message).finalize()
        case "verify", [key, signature]:
            # In constant time.
            return _held(lambda: _hmac(key, operation.hash, message).verify(signature))
        case "verify-p256", [point, signature]:
            return _verify_p256(point, signature, operation.hash, message)
        case "import-raw", []:
            return _point(_from_point(message))
        case "import-spki", []:
            return _point(_from_spki(message))
        case _:
            raise Refused("OperationError", f"{operation.op} takes other arguments")


def _split(data: bytes, lengths: list[int]) -> list[bytes]:
    parts = []
    for length in lengths:
        if not 0 <= length <= len(data):
            raise Refused("OperationError", "the data is too short")
        parts.append(data[:length])
        data = data[length:]
    return [*parts, data]


def _hash(name: str) -> hashes.HashAlgorithm:
    if name not in HASHES:
        raise Refused("NotSupportedError", f"{name} is not supported")
    return HASHES[name]()


def _hmac(key: bytes, hash: str, message: bytes) -> HMAC:
    made = HMAC(key, _hash(hash))
    made.update(message)
    return made


def _held(verify: Callable[[], object]) -> bytes:
    try:
        verify()
    except InvalidSignature:
        return FALSE
    return TRUE


def _verify_p256(point: bytes, signature: bytes, hash: str, message: bytes) -> bytes:
    algorithm = ec.ECDSA(_hash(hash))
    public = _from_point(point)
    # WebCrypto's form of a signature is r ‖ s; one of another length is not an error but no signature.
    if len(signature) != 2 * COORDINATE_BYTES:
        return FALSE
    r, s = (int.from_bytes(signature[at : at + COORDINATE_BYTES]) for at in (0, COORDINATE_BYTES))
    return _held(lambda: public.verify(encode_dss_signature(r, s), message, algorithm))


def _from_point(point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise Refused("DataError", "the key is not a point on P-256") from None


def _from_spki(data: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise Refused("DataError", "the key is not a SubjectPublicKeyInfo") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused("DataError", "the key is not on P-256")
    return key


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
