"""Addresses that are not public, in every spelling and by every way: no connection is made to any of them.

Real listeners on this machine count what arrives, whatever of its addresses it arrives at.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from yarl import URL

from neolayer_enclave.egress import (
    BadPattern,
    Egress,
    FetchRefused,
    FetchRequest,
    Pattern,
    is_public,
    parse_pattern,
)
from tests.enclave_process.host import Host, Process, output
from tests.enclave_process.test_egress import FETCH, open_enclave, open_host, self_signed, site

__all__ = ["open_enclave", "open_host", "self_signed", "site"]

#: What stands before the port.
SPELLINGS = [
    # plain
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "localhost", "LOCALHOST",  # noqa: S104
    "localhost.", "[::1]", "[::]",
    # IPv4 in other notations
    "2130706433", "017700000001", "0x7f000001", "0x7F.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "0", "0x0",
    "127.000.000.001", "0x7f.0x0.0x0.0x1", "127.0.0.1.", "127.0.0.1..", "4294967296", "0000000127.0.0.1",
    # IPv6 that is, or wraps, IPv4 or loopback
    "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::FFFF:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]",
    "[2a00::5efe:127.0.0.1]",
    "[::1%25lo]", "[::1%lo]", "[fe80::1%25lo]", "[::ffff:127.0.0.1%25lo]",
    # characters that become others on the way
    "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "localhost。",
    "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "loc%61lhost", "127.0.0.1%00", "localhost%00.example.com",
    "127.0.0.1%20",
    "\t127.0.0.1", "127.0.0.1\t", "127.0.0.1\n", " 127.0.0.1", "127.0.0.1 ", "local\u00adhost",
    # parts of a URL that are taken for others
    "example.com@127.0.0.1", "example.com:80@127.0.0.1", "127.0.0.1#@example.com",
    "127.0.0.1\\@example.com",
    "example.com\\@127.0.0.1", "127.0.0.1%2f@example.com", "@127.0.0.1", ":@127.0.0.1", "[::1]@127.0.0.1",
    "127.0.0.1:80@[::1]", "[::ffff:0x7f000001]", "[v1.127.0.0.1]", "[127.0.0.1]",
]  # fmt: skip
#: Not this machine's, so nothing can arrive; they must be refused for what they are.
OTHERS = [
    "169.254.169.254", "[fd00:ec2::254]", "[fd20:ce::254]", "169.254.170.2", "100.100.100.200",
    "168.63.129.16",
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.127.255.255",
    "169.254.0.1",
    "192.0.0.8", "192.0.0.170", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "0.1.2.3", "[fe80::1]", "[fec0::1]",
    "[fc00::1]", "[fd00::1]",
    "[ff02::1]", "[ff0e::1]", "[100::1]", "[2001:db8::1]", "[3fff::1]", "[3ffe::1]", "[2001:2::1]",
    "[2001:10::1]",
    "[5f00::1]", "[4000::1]", "[64:ff9b::10.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[::ffff:169.254.169.254]",
    "[2002:a9fe:a9fe::1]", "[2001:0:a9fe:a9fe::1]", "2852039166", "0xa9fea9fe",
    "0251.0376.0251.0376", "169.16689662",
    "①⑥⑨.②⑤④.①⑥⑨.②⑤④", "[::a9fe:a9fe]", "[2a00::200:5efe:10.0.0.1]",
]  # fmt: skip
REFUSALS = {"egress_denied", "invalid_request"}
#: Systems differ in whether they know these.
MAYBE_UNKNOWN = {"localhost.", "localhost。"}
#: An address that counts as public, and to which nothing is sent, see `Detour`.
PUBLIC = "198.41.0.4"


class Listeners:
    """One port on all of this machine's addresses, IPv4 and IPv6; counts connections."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        four = socket.create_server(("0.0.0.0", 0))  # noqa: S104
        self.port = four.getsockname()[1]
        sockets = [four]
        with contextlib.suppress(OSError):
            six = socket.socket(socket.AF_INET6)
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            six.bind(("::", self.port))
            six.listen()
            sockets.append(six)
        for each in sockets:
            self._servers.append(await loop.create_server(lambda: _Counting(self), sock=each))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()


class _Counting(asyncio.Protocol):
    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._listeners.connections += 1
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached")
        transport.close()


@pytest.fixture(scope="module")
async def listeners() -> AsyncIterator[Listeners]:
    listeners = Listeners()
    await listeners.start()
    yield listeners
    await listeners.close()


def own_addresses() -> list[str]:
    """Of this machine's interfaces, as they stand in a URL."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET:
                found.append(each.address)
            elif each.family == socket.AF_INET6:
                found.append(f"[{each.address.replace('%', '%25')}]")
    return sorted(set(found))


async def test_the_listeners_would_notice(open_host: Host, listeners: Listeners) -> None:
    """With the development switch on the same requests arrive, so the zeros below mean something."""
    reached = ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0", "127。0。0。1"]  # noqa: S104
    reached += [address for address in own_addresses() if "%" not in address]
    for name in reached:
        before = listeners.connections
        base = f"http://{name}:{listeners.port}"
        answer = output(await open_host.run(FETCH, {"url": f"{base}/"}, egress=[base]))
        assert answer.get("text") == "reached", (name, answer)
        assert listeners.connections == before + 1
    listeners.connections = 0


@pytest.mark.parametrize("name", [*SPELLINGS, *OTHERS], ids=ascii)
async def test_no_spelling_of_an_address_is_dialled(host: Host, listeners: Listeners, name: str) -> None:
    before = listeners.connections
    base = f"http://{name}:{listeners.port}"
    patterns = [f"http://{each}:{listeners.port}" for each in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0")]  # noqa: S104
    with contextlib.suppress(BadPattern):
        parse_pattern(base)
        patterns.append(base)
    bundle = await host.load(FETCH, egress=patterns)
    for path in ("/", "", "/a?b#c"):
        answer = output(await host.invoke(bundle, {"url": f"{base}{path}"}))
        assert answer.get("code") in REFUSALS | ({"fetch_failed"} if name in MAYBE_UNKNOWN else set()), answer
    assert listeners.connections == before


async def test_no_address_of_this_machine_is_dialled_from_outside(host: Host, listeners: Listeners) -> None:
    before = listeners.connections
    literal = [address for address in own_addresses() if "." not in address or not is_public(address)]
    for name in [*literal, socket.gethostname(), f"{socket.gethostname()}."]:
        base = f"http://{name}:{listeners.port}"
        patterns = [base] if "%" not in name else []
        answer = output(await host.run(FETCH, {"url": f"{base}/"}, egress=patterns))
        # A machine need not know its own name.
        assert answer.get("code") in REFUSALS | ({"fetch_failed"} if name[0].isalpha() else set())
    assert listeners.connections == before


# --- names and redirects: the same code in this process, so that names lead where the test says ----------------


class Anything(Pattern):
    """A function that may fetch from everywhere: what stays is the check of addresses."""

    def admits(self, scheme: str, host: str, port: int) -> bool:
        return True


ANYTHING = [Anything("https", "any.example", 443, False)]


class Detour(socket.socket):
    """Goes to this machine whatever public address it is given, so that these tests send nothing elsewhere."""

    to: tuple[str, int]

    def connect(self, address: Any) -> None:
        super().connect(self.to)


class DetouredEgress(Egress):
    """`Egress` whose names are resolved by a script, and whose public addresses are this machine."""

    def __init__(self, answers: dict[str, list[list[str]]], to: int) -> None:
        super().__init__(allow_private=False, lookup=self.look_up)
        self.answers = answers
        self.lookups: list[str] = []
        self.dialled: list[str] = []
        self._to = to

    async def look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[Any]:
        self.lookups.append(host)
        turns = self.answers[host]
        addresses = turns.pop(0) if len(turns) > 1 else turns[0]
        found: list[Any] = []
        for address in addresses:
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            found += await asyncio.get_running_loop().getaddrinfo(
                address, port, family=kind, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        return found

    def new_socket(self, address: tuple[Any, ...]) -> socket.socket:
        super().new_socket(address).close()
        self.dialled.append(address[4][0])
        detour = Detour(address[0], address[1], address[2])
        detour.to = ("127.0.0.1", self._to)
        return detour


class Redirector:
    """A web server that redirects to ``target``."""

    def __init__(self) -> None:
        self.port = 0
        self.target = ""
        self.status = 302
        self.seen: list[dict[str, str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        if request.path == "/end":
            return web.Response(text="end")
        response = web.Response(status=self.status)
        response.headers["Location"] = self.target
        return response


@pytest.fixture
async def redirector() -> AsyncIterator[Redirector]:
    redirector = Redirector()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", redirector.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    redirector.port = runner.addresses[0][1]
    yield redirector
    await runner.cleanup()


async def fetch(egress: Egress, url: str, **headers: str) -> str:
    """The body, or the code of the refusal."""
    request = FetchRequest(url, "GET", list(headers.items()), "follow", has_body=False)
    try:
        _, body = await egress.fetch(request, ANYTHING, 5)
    except FetchRefused as refusal:
        return refusal.code
    finally:
        await egress.close()
    return body.decode()


@pytest.mark.parametrize("name", [*SPELLINGS, *OTHERS], ids=ascii)
async def test_no_redirect_leads_to_an_address_that_is_not_public(
    listeners: Listeners, redirector: Redirector, name: str
) -> None:
    before = listeners.connections
    for status, scheme in ((302, "http"), (307, "http"), (301, "https"), (308, "")):
        redirector.status = status
        redirector.target = f"{scheme}{':' if scheme else ''}//{name}:{listeners.port}/"
        if any(ord(character) < 32 for character in redirector.target):
            redirector.target = redirector.target.encode("unicode_escape").decode()
        egress = DetouredEgress(
            {"start.example": [[PUBLIC]], "localhost": [["127.0.0.1"]], "localhost.": [["::1"]]}, redirector.port
        )
        assert await fetch(egress, f"http://start.example:{listeners.port}/") in REFUSALS
        assert egress.dialled == [PUBLIC]
    assert listeners.connections == before


async def test_a_redirect_to_a_public_address_is_followed(redirector: Redirector) -> None:
    """Otherwise the test above would prove nothing."""
    answers = {"start.example": [[PUBLIC]], "next.example": [["2620:fe::fe", "9.9.9.9"]]}
    for target in ("http://next.example/end", f"http://{PUBLIC}/end", "/end", "//next.example:81/end"):
        redirector.target = target
        egress = DetouredEgress(answers, redirector.port)
        # The detour of an IPv6 socket cannot reach an IPv4 listener; happy eyeballs takes the other address.
        assert await fetch(egress, "http://start.example/") == "end"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        [PUBLIC, "127.0.0.1"],
        ["127.0.0.1", PUBLIC],
        ["2620:fe::fe", "::ffff:127.0.0.1"],
        [PUBLIC, "169.254.169.254"],
        [PUBLIC, "fd00:ec2::254"],
        ["64:ff9b::7f00:1"],
        ["0.0.0.0"],  # noqa: S104
    ],
    ids=" ".join,
)
async def test_a_name_with_one_address_that_is_not_public_is_not_dialled_at_all(
    listeners: Listeners, addresses: list[str]
) -> None:
    before = listeners.connections
    egress = DetouredEgress({"rebound.example": [addresses]}, listeners.port)
    assert await fetch(egress, f"http://rebound.example:{listeners.port}/") == "egress_denied"
    assert egress.dialled == []
    assert listeners.connections == before


async def test_a_name_that_changes_its_address_is_dialled_where_it_was_checked(
    listeners: Listeners, redirector: Redirector
) -> None:
    """DNS rebinding: the first answer is public, every later one is loopback."""
    before = listeners.connections
    egress = DetouredEgress({"rebound.example": [[PUBLIC], ["127.0.0.1"]]}, redirector.port)
    assert await fetch(egress, f"http://rebound.example:{listeners.port}/end") == "end"
    # One question, and its answer is what was dialled.
    assert (egress.lookups, egress.dialled) == (["rebound.example"], [PUBLIC])
    # A connection made later asks again, and is refused.
    again = DetouredEgress(egress.answers, redirector.port)
    assert await fetch(again, f"http://rebound.example:{listeners.port}/end") == "egress_denied"
    assert again.dialled == []
    assert listeners.connections == before


async def test_a_name_that_changes_its_address_between_redirects_is_refused(redirector: Redirector) -> None:
    answers = {"a.example": [[PUBLIC]], "b.example": [["10.0.0.1"]]}
    redirector.target = "http://b.example/"
    egress = DetouredEgress(answers, redirector.port)
    assert await fetch(egress, "http://a.example/") == "egress_denied"
    assert egress.dialled == [PUBLIC]


async def test_the_last_gate_holds_without_those_before(listeners: Listeners) -> None:
    egress = Egress(allow_private=False)
    for address in ("127.0.0.1", "::1", "169.254.169.254"):
        with pytest.raises(OSError, match="not a public address"):
            egress.new_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, listeners.port)))


async def test_no_credentials_cross_origins_and_others_do(redirector: Redirector) -> None:
    answers = {"a.example": [[PUBLIC]], "b.example": [[PUBLIC]]}
    credentials = ["Authorization", "Cookie", "Proxy-Authorization", "X-Api-Key", "X-Auth-Token", "Api-Key"]
    credentials += ["X-Amz-Security-Token", "X-Signature", "X-CSRF-Token", "X-Client-Secret", "PRIVATE-TOKEN"]
    others = ["Accept", "X-Request-Id", "X-Author", "Accept-Language", "X-Monkey"]
    headers = dict.fromkeys([*credentials, *others], "v")
    for target, crossed in (("http://b.example/end", True), ("http://a.example:81/end", True), ("/end", False)):
        redirector.target = target
        redirector.seen.clear()
        assert await fetch(DetouredEgress(answers, redirector.port), "http://a.example/", **headers) == "end"
        arrived = redirector.seen[1].keys()
        assert {name for name in credentials if name.lower() in arrived} == (
            set() if crossed else set(credentials)
        )
        assert {name for name in others if name.lower() in arrived} == set(others)


async def test_a_redirect_from_https_to_http_needs_a_pattern_of_its_own(
    tmp_path: Path,
    self_signed: ssl.SSLContext,
    redirector: Redirector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", redirector.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self_signed).start()
    secure = f"localhost:{runner.addresses[0][1]}"
    plain = f"http://localhost:{redirector.port}"
    redirector.target = f"{plain}/end"
    # This enclave trusts the certificate of the test, and may reach this machine.
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    process = await Process.start(tmp_path, "--egress-allow-private")
    host = await Host.connect(process)
    request = {"url": f"https://{secure}/", "headers": {"Authorization": "Bearer s"}}
    refused = output(await host.run(FETCH, request, egress=[secure]))
    assert refused["code"] == "egress_denied"
    assert plain in refused["message"]
    assert len(redirector.seen) == 1
    allowed = output(await host.run(FETCH, request, egress=[secure, plain]))
    assert allowed["text"] == "end"
    assert ["authorization" in headers for headers in redirector.seen] == [True, True, False]
    await host.close()
    await process.stop()
    await runner.cleanup()


def test_patterns_are_read_as_urls_are() -> None:
    for name in SPELLINGS:
        try:
            pattern = parse_pattern(f"http://{name}:80")
        except BadPattern:
            continue
        assert pattern.host == (URL(f"http://{name}:80").raw_host or "").lower().removesuffix(".")
