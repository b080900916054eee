"""`fetch` of the functions: TLS ends here, inside the enclave.

Nothing may be reached but what a bundle's patterns name. Of those, no address that is not public: names are
resolved here, every address is checked, and the checked addresses are what is dialled. Each redirect passes the
same gate again.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Literal

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

MAX_REDIRECTS: Final = 5
MAX_RESPONSE_BYTES: Final = 5 * 1024 * 1024
MAX_URL_CHARACTERS: Final = 8192
MAX_CONNECTIONS: Final = 1000
DEFAULT_PORTS: Final = {"https": 443, "http": 80}
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: The connection's own business, as in the fetch standard's forbidden request headers.
OUR_HEADERS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "via"}
)
#: Names of headers that do not cross origins: what the fetch standard drops, and what APIs call such headers.
CREDENTIALS: Final = re.compile(
    r"(^|-)(auth|authorization|cookie|token|secret|password|signature|session|key|apikey)(-|$)", re.IGNORECASE
)
#: A host name after IDNA.
NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
#: A last label that makes a name an address: https://url.spec.whatwg.org/#ends-in-a-number-checker
NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
#: All IPv6 that is routed on the internet, https://www.iana.org/assignments/ipv6-unicast-address-assignments
UNICAST: Final = IPv6Network("2000::/3")
#: Of it, and of IPv4, what the standard library takes for global but nobody's server is in: protocol assignments,
#: documentation, the returned 6bone, 6to4 relays.
SPECIAL: Final = tuple(
    (IPv4Network if "." in net else IPv6Network)(net)
    for net in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20", "3ffe::/16")
)
#: RFC 5214 (ISATAP): beginnings of interface identifiers that wrap an IPv4 address.
ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
#: RFC 6052: an IPv4 address in the last 32 bits.
NAT64: Final = IPv6Network("64:ff9b::/96")
#: Azure's host agent: routable by its number, but always the machine's own.
PLATFORM_ADDRESSES: Final = frozenset({IPv4Address("168.63.129.16")})


class FetchRefused(Exception):
    """A fetch that was not made or not finished; ``code`` reaches the function."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadPattern(Exception):
    """An egress pattern that cannot be understood."""


class _AddressDenied(OSError):
    """A name leads to an address that is not public."""


class FetchRequest(msgspec.Struct, frozen=True):
    """A body, if it has one, travels behind this, as bytes."""

    url: str
    method: str
    headers: list[tuple[str, str]]
    redirect: Literal["follow", "error", "manual"]
    has_body: bool


#: From JSON; raises `msgspec.DecodeError`.
decode_request: Final = msgspec.json.Decoder(FetchRequest).decode


class FetchResponse(msgspec.Struct, frozen=True):
    """``body`` travels behind this, as bytes."""

    url: str
    status: int
    reason: str
    redirected: bool
    headers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Pattern:
    scheme: str
    #: Lower case; with ``subdomains`` every name under it but not itself.
    host: str
    port: int
    subdomains: bool

    def admits(self, scheme: str, host: str, port: int) -> bool:
        if scheme != self.scheme or port != self.port:
            return False
        return host.endswith("." + self.host) if self.subdomains else host == self.host


PRIVATE_HINT: Final = "and private ones are allowed in development only (NEOLAYER_EGRESS_ALLOW_PRIVATE)"


def parse_pattern(text: str) -> Pattern:
    """``host``, ``host:port`` and ``*.host`` mean https; ``http://host:port`` is the one way to plain http.

    Raises:
        BadPattern: see there.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "https", text.strip()
    subdomains = rest.startswith("*.")
    try:
        url = URL(f"{scheme}://{rest.removeprefix('*.')}")
        host, port = _host(url), url.port
    except (ValueError, FetchRefused):
        raise BadPattern(text) from None
    bare = url.path in ("", "/") and not url.query_string and not url.fragment and url.user is None
    if scheme not in DEFAULT_PORTS or not bare or not port:
        raise BadPattern(text)
    return Pattern(scheme, host, port, subdomains)


def is_public(address: str) -> bool:
    """Whether an address lies on the public internet, also when it wraps an IPv4 address."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip in NAT64:
            return is_public(str(IPv4Address(int(ip) & 0xFFFF_FFFF)))
        # Mapped, 6to4, Teredo and ISATAP addresses name an IPv4 host by a detour that nobody needs.
        wraps = ip.ipv4_mapped or ip.sixtofour or ip.teredo or int(ip) >> 32 & 0xFFFF_FFFF in ISATAP
        if wraps or ip not in UNICAST:
            return False
    if any(ip in network for network in SPECIAL):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip not in PLATFORM_ADDRESSES


#: Name and port to what `socket.getaddrinfo` returns.
type Lookup = Callable[[str, int, socket.AddressFamily], Awaitable[list[Any]]]


class Egress:
    """One pool of outgoing connections for all functions."""

    def __init__(self, *, allow_private: bool, lookup: Lookup | None = None) -> None:
        """``lookup``: how names are resolved, if not by the system."""
        self.allow_private = allow_private
        self._lookup = lookup or _system_lookup
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(
        self, request: FetchRequest, body: bytes | None, patterns: Sequence[Pattern], timeout_s: float
    ) -> tuple[FetchResponse, bytes]:
        """Make one request and follow its redirects as it says.

        Raises:
            FetchRefused: codes ``egress_denied``, ``invalid_request``, ``fetch_failed``, ``fetch_timeout``,
                ``response_too_large``, ``too_many_redirects``, ``redirect_refused``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(request, body, patterns)
        except TimeoutError:
            raise FetchRefused("fetch_timeout", "no complete answer within the call's time") from None
        except _AddressDenied as error:
            raise FetchRefused("egress_denied", str(error)) from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _AddressDenied):
                raise FetchRefused("egress_denied", str(error.os_error)) from None
            raise FetchRefused("fetch_failed", f"cannot reach {error.host}: {error.os_error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise FetchRefused("fetch_failed", str(error) or type(error).__name__) from None
        except ValueError as error:
            raise FetchRefused("invalid_request", str(error)) from None

    async def _follow(
        self, request: FetchRequest, body: bytes | None, patterns: Sequence[Pattern]
    ) -> tuple[FetchResponse, bytes]:
        method = request.method.upper()
        if method not in METHODS:
            raise FetchRefused("invalid_request", f"method {request.method} is not supported")
        headers = CIMultiDict((k, v) for k, v in request.headers if k.lower() not in OUR_HEADERS)
        url = _parse(request.url)
        for hop in range(MAX_REDIRECTS + 1):
            self._admit(url, patterns)
            async with self._open().request(
                method,
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                skip_auto_headers=("Content-Type",),
            ) as response:
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or location is None or request.redirect == "manual":
                    content = await _read(response)
                    return _answer(response, str(url), redirected=hop > 0), content
                if request.redirect == "error":
                    raise FetchRefused("redirect_refused", f"{url} redirects, which this request does not allow")
            target = _parse(str(url.join(URL(location))))
            if target.origin() != url.origin():
                for name in [name for name in headers if CREDENTIALS.search(name)]:
                    headers.popall(name, None)
            if response.status == 303 or (response.status in (301, 302) and method == "POST"):
                method, body = ("HEAD" if method == "HEAD" else "GET"), None
                for name in ("content-type", "content-encoding", "content-language", "content-location"):
                    headers.popall(name, None)
            url = target
        raise FetchRefused("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")

    def _admit(self, url: URL, patterns: Sequence[Pattern]) -> None:
        host = _host(url)
        if not any(pattern.admits(url.scheme, host, url.port or 0) for pattern in patterns):
            shown = f"{host}:{url.port}" if url.port != DEFAULT_PORTS.get(url.scheme) else host
            need = f"http://{host}:{url.port}" if url.scheme == "http" else shown
            raise FetchRefused(
                "egress_denied", f"{shown} is not among the hosts this function may reach: it needs {need}"
            )
        # The connector does not ask the resolver about a literal address; of one in an odd form (`127.1`) every
        # library thinks differently.
        literal = _is_literal(host)
        if (literal and not self.allow_private and not is_public(host)) or (
            not literal and NUMBER.fullmatch(host.rpartition(".")[2])
        ):
            raise FetchRefused("egress_denied", f"{host} is not a public address, {PRIVATE_HINT}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = CheckedResolver(self._lookup, allow_private=self.allow_private)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=resolver, limit=MAX_CONNECTIONS, ttl_dns_cache=10, socket_factory=self.new_socket
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=10),
                trust_env=False,
                max_line_size=16_384,
                max_field_size=16_384,
                headers={"User-Agent": "neo-service-layer"},
            )
        return self._session

    def new_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """For the address, as of `socket.getaddrinfo`, that is dialled next: the last gate, whatever led here."""
        family, kind, protocol, _, target = address
        if not self.allow_private and not is_public(str(target[0])):
            raise _AddressDenied(f"{target[0]} is not a public address, {PRIVATE_HINT}")
        return socket.socket(family, kind, protocol)


async def _system_lookup(host: str, port: int, family: socket.AddressFamily) -> list[Any]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)


class CheckedResolver(AbstractResolver):
    """Refuses a name as a whole when one of its addresses is not public."""

    def __init__(self, lookup: Lookup, *, allow_private: bool) -> None:
        self._lookup = lookup
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results: list[ResolveResult] = []
        for found_family, _type, proto, _name, address in await self._lookup(host, port, family):
            text = str(address[0])
            if not self._allow_private and not is_public(text):
                # Which address is not said: functions are not to explore the names of this network.
                raise _AddressDenied(f"what {host} leads to is not a public address, {PRIVATE_HINT}")
            results.append(
                ResolveResult(
                    hostname=host,
                    host=text,
                    port=port,
                    family=found_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        pass


def _answer(response: aiohttp.ClientResponse, url: str, *, redirected: bool) -> FetchResponse:
    # A server may send any bytes; the fetch standard reads them as Latin-1. JSON has no place for what aiohttp
    # makes of those that are not UTF-8.
    reason = (response.reason or "").encode(errors="surrogateescape").decode("latin-1")
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.raw_headers]
    return FetchResponse(url, response.status, reason, redirected, headers)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise FetchRefused("response_too_large", f"the answer has more than {MAX_RESPONSE_BYTES} bytes")
    return bytes(content)


def _parse(text: str) -> URL:
    if len(text) > MAX_URL_CHARACTERS:
        raise FetchRefused("invalid_request", "the URL is too long")
    try:
        url = URL(text)
    except ValueError as error:
        raise FetchRefused("invalid_request", f"not a URL: {error}") from None
    if url.scheme not in DEFAULT_PORTS:
        raise FetchRefused("invalid_request", "fetch takes absolute http and https URLs")
    if url.user is not None or url.password is not None:
        raise FetchRefused("invalid_request", "credentials do not belong into a URL; set the header")
    _host(url)
    return url.with_fragment(None)


def _host(url: URL) -> str:
    """As it is compared: in ASCII, lower case, without the root's dot. Either an address or a plain name."""
    host = (url.raw_host or "").lower().removesuffix(".")
    if not host:
        raise FetchRefused("invalid_request", "the URL names no host")
    if not _is_literal(host) and not NAME.fullmatch(host):
        raise FetchRefused("invalid_request", "the URL's host is not a name")
    return host


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
