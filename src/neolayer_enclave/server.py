"""The enclave's side of the host's connections: every request of `protocol` and who answers it."""

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from neolayer_enclave import attest, protocol, seal
from neolayer_enclave.bundle import Bundle
from neolayer_enclave.cell import CannotWarm, CheckFailed, NoCapacity, NotUp, TooManyCalls
from neolayer_enclave.cells import Cells
from neolayer_enclave.egress import BadPattern, parse_pattern
from neolayer_enclave.frames import FramePeer
from neolayer_enclave.keys import Keys
from neolayer_enclave.protocol import Failure, Kind, Limits
from neolayer_enclave.run import Run
from neolayer_enclave.sign import BadTransaction, NotASigner, Signer

MAX_SOURCE_BYTES: Final = 1_048_576
MAX_INPUT_BYTES: Final = 1_048_576
MAX_SECRET_BYTES: Final = 65_536
MAX_NONCE_BYTES: Final = 64
TIMEOUT_MS: Final = range(100, 30_001)
CPU_MS: Final = range(10, 10_001)
MEMORY_MB: Final = range(16, 513)
#: Sources kept; a bundle that fell out is asked for again by ``not_loaded``.
BUNDLES_BYTES: Final = 256 * 1024 * 1024
#: As plain numbers: an attribute of an enumeration costs a tenth of what the rest of a frame does.
INVOKE: Final = int(Kind.INVOKE)
RESULT: Final = int(Kind.RESULT)

_log = logging.getLogger(__name__)
_decode_failure = msgspec.msgpack.Decoder(Failure).decode


class Refused(Exception):
    """A request that is not served."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, retryable)


class AlreadyServed(Exception):
    """Somebody listens on the socket."""


class Enclave:
    """What all connections share."""

    def __init__(self, keys: Keys, cells: Cells) -> None:
        self.keys = keys
        self.cells = cells
        self.signer = Signer(keys.wallets)
        self.measurement = attest.measure()
        self.connections: set[Connection] = set()
        self._bundles: OrderedDict[tuple[str, str], Bundle] = OrderedDict()
        self._by_handle: dict[bytes, Bundle] = {}
        self._bundles_bytes = 0
        cells.used = self._used

    def identity(self) -> protocol.Identity:
        return protocol.Identity(
            protocol=protocol.PROTOCOL_VERSION,
            provider=attest.PROVIDER,
            signing_key=self.keys.signing_public,
            encryption_key=self.keys.encryption_public,
            measurement=self.measurement,
            egress_allow_private=self.cells.egress_allow_private,
        )

    def statistics(self) -> protocol.Statistics:
        return protocol.Statistics(
            cells=self.cells.count,
            isolates=self.cells.isolates,
            bundles=len(self._bundles),
            running=self.cells.running,
            cells_started=self.cells.started,
            cells_crashed=self.cells.crashed,
            spares=self.cells.spares,
            waiting=self.cells.waiting,
            loads=self.cells.loading.statistics(),
        )

    def seal(self, request: protocol.Seal) -> protocol.Sealed:
        return self._seal(request, request.plaintext)

    def seal_upload(self, request: protocol.SealUpload) -> protocol.Sealed:
        names = (request.tenant, request.name, request.version)
        return self._seal(request, seal.open_upload(self.keys.encryption, *names, request.upload))

    def reseal(self, request: protocol.Reseal) -> protocol.Resealed:
        """Only what opens is sealed anew: damaged rows must not keep the others from it."""
        _check_epoch(request.epoch)
        ciphertexts: list[bytes | None] = []
        for secret in request.secrets:
            names = (secret.tenant, secret.name, secret.version)
            try:
                plaintext = seal.unseal_secret(self.keys.secrets, *names, secret.ciphertext)
            except seal.SealInvalid:
                ciphertexts.append(None)
            else:
                ciphertexts.append(seal.seal_secret(self.keys.secrets, request.epoch, *names, plaintext))
        return protocol.Resealed(ciphertexts)

    def _seal(self, request: protocol.Seal | protocol.SealUpload, plaintext: bytes) -> protocol.Sealed:
        _check_epoch(request.epoch)
        if len(plaintext) > MAX_SECRET_BYTES:
            raise Refused("secret_too_large", f"a secret has at most {MAX_SECRET_BYTES} bytes")
        if not _is_text(plaintext):
            raise Refused("invalid_secret", "a secret is UTF-8 text")
        names = (request.tenant, request.name, request.version)
        return protocol.Sealed(seal.seal_secret(self.keys.secrets, request.epoch, *names, plaintext))

    def load(self, request: protocol.Load) -> protocol.Loaded:
        """Keep a bundle, its secrets opened. The same bundle again changes nothing."""
        key, digest = (request.tenant, request.bundle), _digest(request)
        known = self._bundles.get(key)
        if known and known.digest != digest:
            raise Refused("bundle_conflict", "a bundle of this name was loaded with another content")
        if not known:
            bundle = self._bundles[key] = self._bundle(request, digest)
            self._by_handle[bundle.handle] = bundle
            self._bundles_bytes += bundle.size
        while self._bundles_bytes > BUNDLES_BYTES and len(self._bundles) > 1:
            _, oldest = self._bundles.popitem(last=False)
            self._bundles_bytes -= oldest.size
            del self._by_handle[oldest.handle]
            self.cells.unload(oldest)
        return protocol.Loaded(self._bundles[key].handle)

    def known(self, tenant: str, name: str) -> Bundle | None:
        """A bundle, if it is loaded; not taken for a use of it."""
        return self._bundles.get((tenant, name))

    def bundle(self, handle: bytes) -> Bundle:
        bundle = self._by_handle.get(handle)
        if bundle is None:
            raise Refused("not_loaded", "this bundle is not loaded", retryable=True)
        self._bundles.move_to_end((bundle.tenant, bundle.name))
        return bundle

    def _used(self, bundle: Bundle) -> None:
        if (bundle.tenant, bundle.name) in self._bundles:
            self._bundles.move_to_end((bundle.tenant, bundle.name))

    def _bundle(self, request: protocol.Load, digest: bytes) -> Bundle:
        _check_source(request.source)
        _check_limits(request.limits)
        secrets = {
            secret.name: seal.unseal_secret(
                self.keys.secrets, request.tenant, secret.name, secret.version, secret.ciphertext
            ).decode()
            for secret in request.secrets
        }
        return Bundle.make(
            request.tenant,
            request.bundle,
            digest,
            shown=request.name,
            source=request.source,
            limits=request.limits,
            secrets=secrets,
            patterns=[parse_pattern(pattern) for pattern in request.egress],
            isolation=request.isolation,
        )


class Connection(FramePeer):
    """One connection of a host. What runs for it ends with it."""

    def __init__(self, enclave: Enclave) -> None:
        super().__init__()
        self._enclave = enclave
        self._runs: dict[int, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Calls of functions that the host has not answered: id to call and its own number.
        self._asked: dict[int, tuple[Run, int]] = {}
        self._ids = 0
        self._answers: dict[type[protocol.Message], Callable[[Any], protocol.Message]] = {
            protocol.Hello: lambda _: enclave.identity(),
            protocol.Attest: self._attest,
            protocol.Seal: enclave.seal,
            protocol.SealUpload: enclave.seal_upload,
            protocol.Reseal: enclave.reseal,
            protocol.CreateKey: lambda request: enclave.signer.create(request.tenant, request.wallet),
            protocol.SignTransaction: enclave.signer.sign,
            protocol.SignTransactions: enclave.signer.sign_many,
            protocol.Load: enclave.load,
            protocol.Stats: lambda _: enclave.statistics(),
            protocol.Layers: lambda _: protocol.Hardening(enclave.cells.hardening.table()),
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._enclave.connections.add(self)

    def lost(self) -> None:
        self._enclave.connections.discard(self)
        # First those that wait, or they would be begun in the place of others.
        for run in sorted(self._runs.values(), key=lambda run: run.id):
            run.cell.cancel(run)
        for task in self._tasks:
            task.cancel()

    def frame_received(self, kind: int, id: int, body: bytes) -> None:
        if kind == INVOKE:
            try:
                self._invoke(id, body)
            except Exception as error:
                self._refuse(id, _failure(error))
        elif kind == Kind.REQUEST:
            try:
                self._request(id, protocol.decode_request(body))
            except msgspec.DecodeError as error:
                self._refuse(id, Failure("bad_request", str(error)))
        elif kind in (Kind.HOST_RESULT, Kind.HOST_ERROR):
            self._host_answered(id, body, ok=kind == Kind.HOST_RESULT)
        else:
            raise ValueError(f"unknown frame {kind} of a host")

    # --- Caller of the cells --------------------------------------------------------------------------------

    def finished(self, id: int, queue_us: bytes, result: bytes) -> None:
        del self._runs[id]
        self.send(RESULT, id, queue_us, result)

    def refused(self, id: int, failure: Failure) -> None:
        del self._runs[id]
        self._refuse(id, failure)

    def host_call(self, run: Run, seq: int, name: str, argument: bytes) -> None:
        self._ids = self._ids % 0xFFFF_FFFF + 1
        self._asked[self._ids] = run, seq
        self.send(Kind.HOST_CALL, self._ids, protocol.encode(protocol.HostCall(run.request, name, argument)))

    # --- requests ---------------------------------------------------------------------------------------------

    def _request(self, id: int, request: protocol.Request) -> None:
        try:
            if isinstance(request, protocol.Check):
                self._later(self._check(id, request))
            elif isinstance(request, protocol.Warm):
                self._later(self._warm(id, request))
            elif isinstance(request, protocol.Fate):
                self._later(self._fate(id, request))
            elif isinstance(request, protocol.Direct):
                self._hand_over(id, request)
            else:
                self.send(Kind.RESPONSE, id, protocol.encode(self._answers[type(request)](request)))
        except Exception as error:
            self._refuse(id, _failure(error))

    def _invoke(self, id: int, body: bytes) -> None:
        if id in self._runs:
            raise Refused("bad_request", "a call with this frame id is running")
        if len(body) < protocol.INVOKE_HEAD.size:
            raise Refused("bad_request", "the head of an invocation is too short")
        if len(body) > protocol.INVOKE_HEAD.size + MAX_INPUT_BYTES:
            raise Refused("input_too_large", f"the input has more than {MAX_INPUT_BYTES} bytes")
        bundle = self._enclave.bundle(body[: protocol.HANDLE_BYTES])
        nested = body[protocol.HANDLE_BYTES] > 0
        cell = self._enclave.cells.of(bundle.tenant, nested=nested)
        self._runs[id] = cell.invoke(self, id, bundle, body[protocol.HANDLE_BYTES :])

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _warm(self, id: int, request: protocol.Warm) -> None:
        try:
            bundle = self._enclave.bundle(request.handle)
            was_warm = await self._enclave.cells.of(bundle.tenant).warm(bundle)
        except Exception as error:
            self._refuse(id, _failure(error))
        else:
            self.send(Kind.RESPONSE, id, protocol.encode(protocol.Warmed(was_warm)))

    async def _fate(self, id: int, request: protocol.Fate) -> None:
        cell = self._enclave.cells.by_number(request.cell)
        if cell is None:
            # It ended long ago.
            crashed = protocol.ErrorInfo("cell_crashed", "the process of the function ended", retryable=True)
            errors: list[protocol.ErrorInfo | None] = [crashed for _ in request.calls]
        else:
            errors = await cell.fate(request.calls)
        self.send(Kind.RESPONSE, id, protocol.encode(protocol.Fates(errors)))

    def _hand_over(self, id: int, request: protocol.Direct) -> None:
        """Give this connection away; what is left here of it is closed."""
        assert self.transport is not None
        if self._runs or self._asked or self._tasks or self.partial or self.transport.get_write_buffer_size():
            raise Refused("bad_request", "something is under way on this connection")
        bundle = self._enclave.bundle(request.handle)
        cell = self._enclave.cells.at_hand(bundle.tenant)
        end: socket.socket | None = self.transport.get_extra_info("socket")
        if cell is None or end is None:
            raise Refused("no_cell", "the tenant has no cell", retryable=True)
        descriptor = os.dup(end.fileno())
        try:
            first = cell.hand_over(descriptor)
            # Written here and now: what waits in the transport would come behind the cell's first words.
            answer = protocol.encode(protocol.Way(cell.number, first))
            with contextlib.suppress(OSError):
                os.write(descriptor, protocol.frame(Kind.RESPONSE, id, answer))
        except NotUp:
            raise Refused("no_cell", "the tenant's cell takes no connection", retryable=True) from None
        finally:
            os.close(descriptor)
        self.close()

    async def _check(self, id: int, request: protocol.Check) -> None:
        try:
            _check_source(request.source)
            await self._enclave.cells.of(request.tenant).check(request.source)
        except Exception as error:
            self._refuse(id, _failure(error))
        else:
            code_hash = hashlib.sha256(request.source.encode()).digest()
            self.send(Kind.RESPONSE, id, protocol.encode(protocol.Checked(code_hash)))

    def _attest(self, request: protocol.Attest) -> protocol.Evidence:
        if len(request.nonce) > MAX_NONCE_BYTES:
            raise Refused("bad_request", f"a nonce has at most {MAX_NONCE_BYTES} bytes")
        return attest.evidence(self._enclave.keys, self._enclave.measurement, request.nonce)

    def _host_answered(self, id: int, body: bytes, *, ok: bool) -> None:
        asked = self._asked.pop(id, None)
        if asked is None:
            return
        run, seq = asked
        if not ok:
            failure = _decode_failure(body)
            body = msgspec.json.encode({"code": failure.code, "message": failure.message})
        elif not _is_json(body):
            ok, body = False, b'{"code":"internal_error","message":"the host answered without JSON"}'
        run.answer(seq, ok=ok, text=body)

    def _refuse(self, id: int, failure: Failure) -> None:
        self.send(Kind.ERROR, id, protocol.encode(failure))


async def listen(enclave: Enclave, path: Path) -> asyncio.Server:
    """Serve the host on a unix socket that only this user may open.

    Raises:
        AlreadyServed: another process listens there.
        OSError: the socket cannot be made.
    """
    if path.is_socket():
        if _answers(path):
            raise AlreadyServed(path)
        path.unlink()
    # The mode must be right from the first moment on.
    before = os.umask(0o177)
    try:
        return await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(enclave), str(path), backlog=256
        )
    finally:
        os.umask(before)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def _failure(error: Exception) -> Failure:
    match error:
        case Refused():
            return error.failure
        case CheckFailed():
            return error.failure
        case seal.SealInvalid():
            return Failure("seal_invalid", "the ciphertext does not belong to this tenant, name and version")
        case seal.UploadInvalid():
            return Failure(
                "upload_invalid", "the upload was not encrypted to this enclave for this tenant, name and version"
            )
        case BadTransaction():
            return Failure("bad_transaction", str(error))
        case NotASigner():
            return Failure("not_a_signer", "the wallet's account is not among the transaction's signers")
        case BadPattern():
            return Failure("invalid_egress", f"{error} is not a host, host:port, *.domain or http://host:port")
        case CannotWarm():
            return error.failure
        case NoCapacity():
            return Failure("no_capacity", str(error), retryable=True)
        case TooManyCalls():
            return Failure("too_many_calls", str(error), retryable=True)
        case UnicodeEncodeError():
            return Failure("bad_request", "the text is not Unicode")
        case _:
            _log.error("a request failed", exc_info=error)
            return Failure("internal_error", "the enclave failed to serve this request", retryable=True)


def _digest(request: protocol.Load) -> bytes:
    """Of what a bundle's name stands for. Ciphertexts are left out: sealing twice gives two."""
    secrets = sorted((secret.name, secret.version) for secret in request.secrets)
    content = [request.name, request.source, request.limits, secrets, sorted(request.egress), request.isolation]
    return hashlib.sha256(protocol.encode(content)).digest()


def _check_source(source: str) -> None:
    if len(source.encode()) > MAX_SOURCE_BYTES:
        raise Refused("source_too_large", f"a source has at most {MAX_SOURCE_BYTES} bytes")


def _check_epoch(epoch: int) -> None:
    if epoch not in seal.EPOCHS:
        raise Refused("bad_request", "there is no such epoch")


def _check_limits(limits: Limits) -> None:
    for name, allowed in (("timeout_ms", TIMEOUT_MS), ("cpu_ms", CPU_MS), ("memory_mb", MEMORY_MB)):
        if getattr(limits, name) not in allowed:
            raise Refused("invalid_limits", f"{name} lies between {allowed[0]} and {allowed[-1]}")


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
