"""`fetch` of a function: what it reaches, what it must not, and what it sees."""

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from yarl import URL

from neolayer_enclave.egress import is_public, parse_pattern
from neolayer_enclave.protocol import Hello, Identity
from tests.enclave_process.host import Host, Process, output

FETCH = """export default async (input) => {
  try {
    const response = await fetch(input.url, input);
    const { status, ok, redirected, url, headers } = response;
    return { status, ok, redirected, url, type: headers.get('Content-Type'), text: await response.text() };
  } catch (error) {
    return { code: error.code, message: error.message, stack: error.stack };
  }
}"""


class Site:
    """A real web server on this machine that notes every request."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[tuple[str, str, dict[str, str], str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.path_qs, headers, await request.text()))
        match request.path:
            case "/large":
                return web.Response(body=b"x" * (5 * 1024 * 1024 + 1))
            case "/hop":
                code = int(request.query.get("code", "302"))
                return web.Response(status=code, headers={"Location": request.query["to"]})
            case "/round":
                return web.Response(status=302, headers={"Location": "/round"})
            case "/slow":
                response = web.StreamResponse()
                await response.prepare(request)
                return response
            case "/missing":
                return web.Response(status=404, text="nothing here")
        return web.json_response({"path": request.path, "text": "ü€"})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


@pytest.fixture(scope="session")
async def open_enclave(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """With the development switch that lets functions reach private addresses."""
    process = await Process.start(tmp_path_factory.mktemp("open"), "--egress-allow-private")
    yield process
    await process.stop()


@pytest.fixture
async def open_host(open_enclave: Process) -> AsyncIterator[Host]:
    host = await Host.connect(open_enclave)
    yield host
    await host.close()


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    (tmp_path / "certificate").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    return context


async def fetch(host: Host, egress: list[str], url: str, **options: Any) -> Any:
    timeout_ms = options.pop("timeout_ms", 10_000)
    result = await host.run(FETCH, {"url": url, **options}, egress=egress, timeout_ms=timeout_ms)
    return output(result)


async def test_an_allowed_host_is_reached(open_host: Host, site: Site) -> None:
    base = f"http://127.0.0.1:{site.port}"
    result = await open_host.run(
        FETCH,
        {"url": f"{base}/a?b=ü#c", "method": "post", "headers": {"X-Key": "v", "Host": "forged"}, "body": "bödy"},
        egress=[base],
    )
    assert result.fetches == 1
    value = output(result)
    assert value == {
        "status": 200,
        "ok": True,
        "redirected": False,
        "url": f"{base}/a?b=%C3%BC",
        "type": "application/json; charset=utf-8",
        "text": '{"path": "/a", "text": "\\u00fc\\u20ac"}',
    }
    method, path, headers, body = site.seen[0]
    assert (method, path, body) == ("POST", "/a?b=%C3%BC", "bödy")
    assert headers["x-key"] == "v"
    assert headers["host"] == f"127.0.0.1:{site.port}"
    missing = await fetch(open_host, [base], f"{base}/missing")
    assert (missing["status"], missing["ok"], missing["text"]) == (404, False, "nothing here")


async def test_nothing_is_reached_that_was_not_allowed(host: Host, open_host: Host, site: Site) -> None:
    url = f"http://127.0.0.1:{site.port}/"
    for each in (host, open_host):
        for patterns in ([], ["example.com"], [f"127.0.0.1:{site.port}"], [f"http://127.0.0.1:{site.port + 1}"]):
            refused = await fetch(each, patterns, url)
            assert refused["code"] == "egress_denied"
            assert f"127.0.0.1:{site.port}" in refused["message"]
            assert "hello.js:3:" in refused["stack"]
    assert site.seen == []


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "0.0.0.0",  # noqa: S104
        "[::]",
        "169.254.169.254",
        "10.0.0.1",
        "[fd00::1]",
        "[fe80::1]",
        "100.64.0.1",
        "168.63.129.16",
    ],
)
async def test_an_address_that_is_not_public_is_not_dialled_even_if_allowed(
    host: Host, site: Site, name: str
) -> None:
    refused = await fetch(host, [f"http://{name}:{site.port}"], f"http://{name}:{site.port}/")
    assert refused["code"] == "egress_denied"
    assert "not a public address" in refused["message"]
    assert site.seen == []


async def test_a_redirect_passes_the_same_gate(open_host: Host, site: Site) -> None:
    base = f"http://127.0.0.1:{site.port}"
    fine = await fetch(open_host, [base], f"{base}/hop?to=/end")
    assert (fine["status"], fine["redirected"], fine["url"]) == (200, True, f"{base}/end")
    for target in (f"http://localhost:{site.port}/", "http://169.254.169.254/latest", "https://example.com/"):
        site.seen.clear()
        refused = await fetch(open_host, [base], f"{base}/hop?to={target}")
        assert refused["code"] == "egress_denied"
        assert len(site.seen) == 1
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/"):
        assert (await fetch(open_host, [base], f"{base}/hop?to={target}"))["code"] == "invalid_request"
    site.seen.clear()
    assert (await fetch(open_host, [base], f"{base}/round"))["code"] == "too_many_redirects"
    assert len(site.seen) == 6


async def test_credentials_do_not_cross_origins(open_host: Host, site: Site) -> None:
    base, other = f"http://127.0.0.1:{site.port}", f"http://localhost:{site.port}"
    headers = {"Authorization": "Bearer s", "Cookie": "a=b", "X-Api-Key": "k", "X-Other": "o"}
    await fetch(open_host, [base, other], f"{base}/hop?to=/same", headers=headers)
    await fetch(open_host, [base, other], f"{base}/hop?to={other}/else", headers=headers)
    same, crossed = site.seen[1][2], site.seen[3][2]
    assert same["authorization"] == "Bearer s"
    assert not {"authorization", "cookie", "x-api-key"} & crossed.keys()
    assert crossed["x-other"] == "o"


@pytest.mark.parametrize(("code", "method"), [(302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
async def test_a_redirect_keeps_method_and_body_as_its_code_says(
    open_host: Host, site: Site, code: int, method: str
) -> None:
    base = f"http://127.0.0.1:{site.port}"
    await fetch(open_host, [base], f"{base}/hop?code={code}&to=/end", method="POST", body="body")
    assert (site.seen[1][0], site.seen[1][3]) == (method, "body" if method == "POST" else "")


async def test_answers_requests_and_time_have_limits(open_host: Host, site: Site) -> None:
    base = f"http://127.0.0.1:{site.port}"
    assert (await fetch(open_host, [base], f"{base}/large"))["code"] == "response_too_large"
    source = f"""export default async () => {{
      const one = () => fetch('{base}/').then(() => 'ok', (error) => error.code);
      const codes = await Promise.all(Array.from({{ length: 60 }}, one));
      return ['ok', 'too_many_fetches'].map((each) => codes.filter((code) => code === each).length);
    }}"""
    assert output(await open_host.run(source, egress=[base])) == [50, 10]
    closed = await fetch(open_host, ["http://127.0.0.1:1"], "http://127.0.0.1:1/")
    assert closed["code"] == "fetch_failed"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "no url"}, "absolute"),
        ({"url": "/path"}, "absolute"),
        ({"url": "file:///etc/passwd"}, "http"),
        ({"url": "data:text/plain,x"}, "http"),
        ({"url": "http://user:password@127.0.0.1/"}, "credentials"),
        ({"method": "CONNECT"}, "CONNECT"),
        ({"headers": {"X": "a\r\nHost: b"}}, "header"),
        ({"body": {"not": "text"}}, "string"),
        ({"url": "http://" + "x" * 9000}, "too long"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    open_host: Host, site: Site, options: dict[str, Any], says: str
) -> None:
    base = f"http://127.0.0.1:{site.port}"
    value = output(await open_host.run(FETCH, {"url": f"{base}/", **options}, egress=[base]))
    assert value["code"] == "invalid_request"
    assert says in value["message"]


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    open_host: Host, self_signed: ssl.SSLContext, site: Site
) -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self_signed)
    await listener.start()
    port = runner.addresses[0][1]
    refused = await fetch(open_host, [f"localhost:{port}"], f"https://localhost:{port}/")
    assert refused["code"] == "fetch_failed"
    assert site.seen == []
    await runner.cleanup()


async def test_fetch_belongs_to_a_running_call(host: Host) -> None:
    source = """let early; try { early = fetch('https://example.com').catch((error) => error.code) } catch {}
      export default async () => await early"""
    assert output(await host.run(source, egress=["example.com"])) == "call_over"


@pytest.mark.parametrize(
    ("pattern", "admitted", "refused"),
    [
        ("api.example.com", "https://api.example.com", "http://api.example.com"),
        ("api.example.com", "https://api.example.com:443", "https://api.example.com:8443"),
        ("API.Example.com", "https://api.example.com", "https://evilapi.example.com"),
        ("example.com:8443", "https://example.com:8443", "https://example.com"),
        ("*.example.com", "https://a.b.example.com", "https://example.com"),
        ("*.example.com", "https://a.example.com", "https://evilexample.com"),
        ("http://example.com:80", "http://example.com", "https://example.com"),
        ("bücher.example", "https://xn--bcher-kva.example", "https://bucher.example"),
        ("[2606:4700::1111]:8443", "https://[2606:4700::1111]:8443", "https://[2606:4700::1112]:8443"),
    ],
)
def test_a_pattern_admits_what_it_names(pattern: str, admitted: str, refused: str) -> None:
    parsed = parse_pattern(pattern)
    for text, expected in ((admitted, True), (refused, False)):
        url = URL(text)
        assert parsed.admits(url.scheme, url.raw_host or "", url.port or 0) is expected


def test_public_addresses_are_told_from_others() -> None:
    public = ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"]
    private = ["224.0.0.1", "255.255.255.255", "192.168.1.1", "172.16.0.1", "198.18.0.1", "192.0.2.1", "240.0.0.1"]
    private += ["::", "::1", "::7f00:1", "::ffff:8.8.8.8", "ff02::1", "fec0::1", "2001:db8::1", "64:ff9b::a00:1"]
    private += ["2002:808:808::", "2001:0:808:808::", "64:ff9b:1::1", "fd00:ec2::254", "100.100.100.200"]
    assert [each for each in public if not is_public(each)] == []
    assert [each for each in private if is_public(each)] == []


async def test_the_development_switch_shows(host: Host, open_host: Host) -> None:
    for each, allowed in ((host, False), (open_host, True)):
        assert (await each.ask(Hello(), Identity)).egress_allow_private is allowed
