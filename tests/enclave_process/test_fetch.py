"""Bodies, classes and aborting of `fetch`; what it may reach is in test_egress."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.enclave_process.host import Host, Process, output
from tests.enclave_process.javascript import evaluate

BINARY = bytes(range(256)) * 4
TEXT = "ü€😀\ufeff\u0000 text"


class Site:
    """A real web server on this machine that gives back what it was sent."""

    def __init__(self) -> None:
        self.base = ""
        self.requests: list[tuple[str, str | None, bytes]] = []
        self.waiting = asyncio.Event()
        self.left = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.headers.get("Content-Type"), body))
        match request.path:
            case "/binary":
                return web.Response(body=BINARY, content_type="application/octet-stream")
            case "/text":
                return web.Response(body=("\ufeff" + TEXT).encode())
            case "/large":
                return web.Response(body=b"\xff" * (5 * 1024 * 1024))
            case "/empty":
                return web.Response(status=204)
            case "/hop":
                return web.Response(status=302, headers={"Location": "/end"}, text="elsewhere")
            case "/cookies":
                response = web.Response(text="x")
                response.headers.add("Set-Cookie", "a=1, b")
                response.headers.add("Set-Cookie", "c=2")
                response.headers.add("X-Twice", "1")
                response.headers.add("X-Twice", "2")
                return response
            case "/odd":
                # Bytes that are not UTF-8 in a header.
                assert request.transport
                request.transport.write(b"HTTP/1.1 200 \xfcber\r\nX-Odd: \xe4\r\nContent-Length: 1\r\n\r\nx")
                request.transport.close()
                return web.Response()
            case "/wait":
                self.waiting.set()
                try:
                    await asyncio.sleep(30)
                finally:
                    self.left.set()
        return web.Response(body=body, content_type="application/octet-stream")


@pytest.fixture(scope="module")
async def open_enclave(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    process = await Process.start(tmp_path_factory.mktemp("open"), "--egress-allow-private")
    yield process
    await process.stop()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    application = web.Application(client_max_size=8 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", site.handle)
    # Lets the handler notice that nobody waits any more.
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    site.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


@pytest.fixture
async def run(open_enclave: Process, site: Site) -> AsyncIterator[Callable[..., Any]]:
    """Evaluates an expression in which ``base`` is the site's address."""
    host = await Host.connect(open_enclave)

    async def run(expression: str, input: Any = None, **options: Any) -> Any:
        wrapped = f"((base) => ({expression}))('{site.base}')"
        return await evaluate(host, wrapped, input, egress=[site.base], **options)

    yield run
    await host.close()


# --- bodies -------------------------------------------------------------------------------------------------


async def test_bytes_of_an_answer_arrive_as_they_were_sent(run: Callable[..., Any]) -> None:
    for read in ("arrayBuffer", "bytes"):
        assert bytes(await run(f"fetch(base + '/binary').then((response) => response.{read}())")) == BINARY
    whole = """fetch(base + '/large').then((response) => response.bytes())
      .then((bytes) => [bytes.constructor.name, bytes.length, bytes.every((byte) => byte === 255)])"""
    assert await run(whole) == ["Uint8Array", 5 * 1024 * 1024, True]
    assert await run("fetch(base + '/binary').then((response) => response.text())") == BINARY.decode(
        errors="replace"
    )


async def test_text_of_an_answer_is_text_and_bytes(run: Callable[..., Any]) -> None:
    assert await run("fetch(base + '/text').then((response) => response.text())") == TEXT
    read = bytes(await run("fetch(base + '/text').then((response) => response.bytes())"))
    assert read == ("\ufeff" + TEXT).encode()


@pytest.mark.parametrize(
    ("body", "sent", "content_type"),
    [
        ("'ü€😀'", "ü€😀".encode(), "text/plain;charset=UTF-8"),
        ("'\\ud800'", b"\xef\xbf\xbd", "text/plain;charset=UTF-8"),
        ("''", b"", "text/plain;charset=UTF-8"),
        ("Uint8Array.from({ length: 256 }, (_, i) => i)", bytes(range(256)), None),
        ("Uint8Array.of(1, 2, 3, 4).subarray(1, 3)", b"\x02\x03", None),
        ("Uint16Array.of(0xfffe).buffer", b"\xfe\xff", None),
        ("new DataView(Uint8Array.of(9, 8, 7).buffer, 1)", b"\x08\x07", None),
        ("new Uint8Array(1_000_000).fill(200)", b"\xc8" * 1_000_000, None),
        (
            "new URLSearchParams({ 'ü': 'a b', c: '&' })",
            b"%C3%BC=a+b&c=%26",
            "application/x-www-form-urlencoded;charset=UTF-8",
        ),
    ],
)
async def test_a_body_leaves_as_its_bytes(
    run: Callable[..., Any], site: Site, body: str, sent: bytes, content_type: str | None
) -> None:
    echoed = f"fetch(base + '/', {{ method: 'POST', body: {body} }}).then((response) => response.bytes())"
    assert await run(f"{echoed}.then((bytes) => bytes.length)") == len(sent)
    assert site.requests == [("POST", content_type, sent)]
    options = f"{{ method: 'PUT', body: {body}, headers: {{ 'Content-Type': 'a/b' }} }}"
    await run(f"fetch(base + '/', {options}).then(() => 1)")
    assert site.requests[1] == ("PUT", "a/b", sent)


async def test_a_body_is_copied_when_it_is_given(run: Callable[..., Any], site: Site) -> None:
    assert await run("""(() => {
      const bytes = Uint8Array.of(1, 2), request = new Request(base + '/', { method: 'POST', body: bytes });
      bytes[0] = 9;
      return fetch(request).then((response) => response.bytes());
    })()""") == [1, 2]


async def test_too_large_a_body_is_refused(run: Callable[..., Any], site: Site) -> None:
    refused = """fetch(base + '/', { method: 'POST', body: new Uint8Array(1_048_577) })
      .then(() => 'sent', (error) => error.code)"""
    assert await run(refused) == "invalid_request"
    assert site.requests == []


async def test_a_body_is_read_once(run: Callable[..., Any]) -> None:
    expression = """(async () => {
      const response = await fetch(base + '/text'), copy = response.clone();
      const before = response.bodyUsed;
      await response.text();
      return [before, response.bodyUsed, await caught(() => response.text()), await caught(() => response.json()),
        await caught(() => response.clone()), copy.bodyUsed, (await copy.text()).length,
          copy.url === response.url];
    })()"""
    again = "TypeError TypeError"
    assert await run(expression) == [False, True, again, again, again, False, len(TEXT) + 1, True]


async def test_streams_are_refused_by_name(run: Callable[..., Any]) -> None:
    expression = """(async () => {
      const codes = [];
      for (const each of [await fetch(base + '/text'), new Request(base, { method: 'POST', body: 'x' })]) {
        try { each.body } catch (error) { codes.push(error.code, error.message) }
      }
      return [codes, (await fetch(base + '/empty')).body, new Response().body, new Request(base).body];
    })()"""
    codes, *rest = await run(expression)
    assert codes[0] == codes[2] == "not_supported"
    assert "arrayBuffer()" in codes[1]
    assert rest == [None, None, None]


# --- Request, Response, Headers -----------------------------------------------------------------------------


async def test_a_request_is_made_beforehand_and_changed(run: Callable[..., Any], site: Site) -> None:
    expression = """(async () => {
      const first = new Request(base + '/a b', { method: 'post', body: 'x', headers: [['X-A', '1'], ['x-a',
        '2']] });
      const copy = first.clone(), second = new Request(first, { headers: { 'X-B': '3' } });
      const seen = [first.url, first.method, copy.headers.get('x-a'), second.headers.get('x-a'), first.bodyUsed,
        await second.text(), await copy.text(), first.redirect, first.signal.aborted];
      return [seen, await fetch(new Request(base + '/', { method: 'PATCH', body: 'y' })).then((r) => r.text())];
    })()"""
    seen, text = await run(expression)
    assert seen == [f"{site.base}/a%20b", "POST", "1, 2", None, True, "x", "x", "follow", False]
    assert (text, site.requests[-1][0]) == ("y", "PATCH")


@pytest.mark.parametrize(
    "wrong",
    [
        "new Request('/x')",
        "new Request(base, { body: 'x' })",
        "new Request(base, { method: 'TRACE' })",
        "new Request(base, { method: 'GET POST' })",
        "new Request(base, { headers: { 'a b': 'c' } })",
        "new Request(base, { headers: { a: '\\u20ac' } })",
        "new Request(base, { headers: [['a']] })",
        "new Request(base, { redirect: 'maybe' })",
        "new Request(base, { signal: {} })",
        "new Request(base, { method: 'POST', body: { a: 1 } })",
        "new Response('x', { status: 204 })",
        "new Headers().append('', 'x')",
        "new Headers([1])",
    ],
)
async def test_wrong_arguments_are_type_errors(run: Callable[..., Any], wrong: str) -> None:
    assert await run(f"caught(() => {wrong})") == "TypeError TypeError"


async def test_responses_are_made_by_authors_too(run: Callable[..., Any]) -> None:
    expression = """(async () => {
      const json = Response.json({ a: 1 }, { status: 201 });
      const plain = new Response(Uint8Array.of(65), { statusText: 'Fine' });
      const moved = Response.redirect('http://x/ y', 301);
      return [json.status, json.ok, json.headers.get('content-type'), await json.json(), plain.statusText,
        await plain.text(), moved.status, moved.headers.get('location'), Response.error().type, new Response().url,
        new Response(new URLSearchParams('a=b')).headers.get('content-type'),
        await caught(() => new Response('', { status: 99 }))];
    })()"""
    assert await run(expression) == [
        201, True, "application/json", {"a": 1}, "Fine", "A", 301, "http://x/%20y", "error", "",
        "application/x-www-form-urlencoded;charset=UTF-8", "RangeError RangeError",
    ]  # fmt: skip


async def test_headers_are_a_list_in_order_of_name(run: Callable[..., Any]) -> None:
    expression = """(() => {
      const headers = new Headers({ 'X-B': ' 2 ', 'x-a': 1 });
      headers.append('X-B', '3'); headers.append('Set-Cookie', 'a=1'); headers.append('set-cookie', 'b=2');
      headers.set('x-c', 'c'); headers.delete('X-C');
      const seen = [];
      headers.forEach((value, name, all) => seen.push(name, value, all === headers));
      return [[...headers], [...headers.keys()], [...headers.values()], headers.get('SET-COOKIE'),
        headers.getSetCookie(), headers.has('x-c'), headers.get('x-c'), seen.length,
          new Headers(headers).get('x-b')];
    })()"""
    pairs = [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-a", "1"], ["x-b", "2, 3"]]
    names, values = [name for name, _ in pairs], [value for _, value in pairs]
    cookies = ["a=1", "b=2"]
    assert await run(expression) == [pairs, names, values, "a=1, b=2", cookies, False, None, 12, "2, 3"]


async def test_headers_of_an_answer_are_whole_and_fixed(run: Callable[..., Any]) -> None:
    expression = """fetch(base + '/cookies').then(async ({ headers }) => [
      headers.getSetCookie(), headers.get('x-twice'), await caught(() => headers.set('a', 'b'))])"""
    assert await run(expression) == [["a=1, b", "c=2"], "1, 2", "TypeError TypeError"]
    odd = "fetch(base + '/odd').then((response) => [response.statusText, response.headers.get('x-odd')])"
    assert await run(odd) == ["über", "ä"]


# --- redirects and aborting ---------------------------------------------------------------------------------


async def test_redirects_are_followed_shown_or_refused(run: Callable[..., Any], site: Site) -> None:
    tell = "(response) => [response.status, response.redirected, response.url, response.headers.get('location')]"
    assert await run(f"fetch(base + '/hop').then({tell})") == [200, True, f"{site.base}/end", None]
    manual = await run(f"fetch(base + '/hop', {{ redirect: 'manual' }}).then({tell})")
    assert manual == [302, False, f"{site.base}/hop", "/end"]
    fails = ".then(() => 1, (error) => [error.name, error.code])"
    refused = await run(f"fetch(base + '/hop', {{ redirect: 'error' }}){fails}")
    assert refused == ["TypeError", "redirect_refused"]
    assert len(site.requests) == 4


async def test_an_aborted_fetch_ends_at_the_server_too(run: Callable[..., Any], site: Site) -> None:
    expression = """(async () => {
      const controller = new AbortController(), began = Date.now();
      setTimeout(() => controller.abort(), 200);
      const name = await fetch(base + '/wait', { signal: controller.signal }).catch((error) => error.name);
      await fetch(base + '/', { signal: controller.signal }).catch(() => {});
      return [name, Date.now() - began < 5000, (await fetch(base + '/', { method: 'POST',
        body: 'after' })).status];
    })()"""
    assert await run(expression, timeout_ms=20_000) == ["AbortError", True, 200]
    assert site.waiting.is_set()
    await asyncio.wait_for(site.left.wait(), 5)
    # The one whose signal was aborted before did not leave.
    assert [body for _, _, body in site.requests] == [b"", b"after"]


async def test_a_fetch_ends_by_a_timeout_or_any_signal_with_its_reason(
    run: Callable[..., Any], site: Site
) -> None:
    timeout = """fetch(base + '/wait', { signal: AbortSignal.timeout(100) })
      .catch((error) => [error.name, error.code])"""
    assert await run(timeout) == ["TimeoutError", 23]
    own = """(() => {
      const controller = new AbortController();
      const signal = AbortSignal.any([controller.signal, AbortSignal.timeout(9000)]);
      setTimeout(() => controller.abort('mine'), 50);
      return fetch(new Request(base + '/wait', { signal })).catch((error) => error);
    })()"""
    assert await run(own) == "mine"


async def test_a_signal_after_the_answer_changes_nothing(run: Callable[..., Any]) -> None:
    expression = """(async () => {
      const controller = new AbortController();
      const response = await fetch(base + '/binary', { signal: controller.signal });
      controller.abort();
      return (await response.bytes()).length;
    })()"""
    assert await run(expression) == len(BINARY)


async def test_aborted_fetches_make_room_for_others(run: Callable[..., Any]) -> None:
    """1,000 host calls may wait at a time; 50 fetches may be made."""
    expression = """(async () => {
      const controller = new AbortController();
      const { signal } = controller;
      const waiting = Array.from({ length: 30 }, () => fetch(base + '/wait', { signal }).catch(() => 'gone'));
      await new Promise((done) => setTimeout(done, 100));
      controller.abort();
      const gone = await Promise.all(waiting);
      const rest = Array.from({ length: 25 }, () => fetch(base + '/').then(() => 'ok', (error) => error.code));
      return [gone.length, (await Promise.all(rest)).filter((each) => each === 'ok').length];
    })()"""
    assert await run(expression) == [30, 20]


async def test_a_broken_answer_maker_rejects_only_its_own_fetch(open_enclave: Process, site: Site) -> None:
    host = await Host.connect(open_enclave)
    source = f"""
      export default async (input) => {{
        if (input) {{
          const never = () => {{ throw new Error('spoiled') }};
          for (const kind of [Map, Array, String, Uint8Array]) {{
            for (const name of Object.getOwnPropertyNames(kind.prototype)) {{
              if (name === 'constructor' || name === 'length') continue;
              try {{ Object.defineProperty(kind.prototype, name, {{ value: never,
                configurable: true }}) }} catch {{}}
            }}
          }}
          Object.defineProperty(Object.prototype, 'status', {{ get: never, set: never }});
        }}
        const response = await fetch('{site.base}/binary');
        return [response.status, (await response.arrayBuffer()).byteLength];
      }}"""
    bundle = await host.load(source, egress=[site.base])
    assert [output(await host.invoke(bundle, input)) for input in (None, True, None)] == [[200, 1024]] * 3
    await host.close()
