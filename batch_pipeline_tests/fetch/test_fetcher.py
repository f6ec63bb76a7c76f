"""Fetching single pages: where connections go, what bounds hold, how failures read."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import ssl
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batch_pipeline.clock import ManualClock
from batch_pipeline.fetch.addresses import AddressRules
from batch_pipeline.fetch.errors import (
    BadUrlError,
    FetchError,
    NotAPageError,
    RedirectError,
    RefusedAddressError,
    SlowPageError,
    StatusError,
    TooLargeError,
    UnreachableError,
)
from batch_pipeline_tests.fetch.site import Request, Site, fetch, fetch_all, page, quick, resolves

MIB = 1024 * 1024


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running


def refused(site: Site, path: str = "/", **changes: object) -> FetchError:
    """The error of a page that must not be had."""
    with pytest.raises(FetchError) as caught:
        fetch(site.url(path), quick(site.rules, **changes))
    assert caught.value.message and caught.value.next_step
    return caught.value


def test_a_page_comes_with_its_text_and_where_it_came_from(site: Site) -> None:
    site.put("/", page())
    got = fetch(site.url("/"), quick(site.rules))
    assert (got.url, got.final_url, got.status, got.html) == (
        site.url("/"),
        site.url("/"),
        200,
        True,
    )
    assert "the new bridge" in got.content


def test_the_request_says_who_asks_and_asks_for_pages(site: Site) -> None:
    site.put("/", page())
    fetch(site.url("/?q=1#part"), quick(site.rules))
    asked = site.requests[-1]
    assert asked.path == "/?q=1"
    assert asked.headers["user-agent"].startswith("batch-pipeline/")
    assert asked.headers["host"] == f"127.0.0.1:{site.port}"
    assert asked.headers["accept-encoding"] == "gzip, deflate"


def test_without_an_allow_list_a_loopback_server_is_never_connected_to(site: Site) -> None:
    site.put("/", page())
    with pytest.raises(RefusedAddressError, match="loopback"):
        fetch("http://127.0.0.1:8080/", quick(AddressRules()))
    rules = AddressRules.parse(f"10.0.0.1:{site.port}")  # the port is allowed, the address is not
    with pytest.raises(RefusedAddressError, match="loopback"):
        fetch(f"http://localhost:{site.port}/", quick(rules))
    assert site.requests == []


def test_a_name_that_leads_to_a_private_address_is_never_connected_to(site: Site) -> None:
    rules = AddressRules.parse(f"10.0.0.1:{site.port}")
    for addresses in (["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::ffff:127.0.0.1"]):
        with pytest.raises(RefusedAddressError, match=r"evil\.example leads to"):
            fetch(
                site.url("/", "evil.example"),
                quick(rules),
                resolver=resolves(evil_example=addresses),
            )
    assert site.requests == []


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(site: Site) -> None:
    # The name changes its mind after the first answer, as in DNS rebinding.
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked: list[str] = []

    async def fickle(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), 2) - 1]

    site.put("/", page())
    rules = AddressRules.parse(f"127.0.0.1:{site.port}")
    settings = quick(rules, obey_robots=False)
    got = fetch(site.url("/", "fickle.example"), settings, resolver=fickle)
    assert got.status == 200 and asked == ["fickle.example"]
    assert site.requests[-1].headers["host"] == f"fickle.example:{site.port}"
    with pytest.raises(RefusedAddressError):
        fetch(site.url("/", "fickle.example"), settings, resolver=fickle)


def test_proxies_of_the_environment_are_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.put("/", page())
    assert fetch(site.url("/"), quick(site.rules)).status == 200


def test_redirects_are_followed_and_cookies_are_not_kept(site: Site) -> None:
    site.put("/a", status=301, headers={"Location": "b?x=1", "Set-Cookie": "id=1"})
    site.redirect("/b", site.url("/c"), 308)
    site.put("/c", page())
    got = fetch(site.url("/a"), quick(site.rules))
    assert got.final_url == site.url("/c")
    assert site.paths == ["/a", "/b?x=1", "/c"]
    assert all("cookie" not in one.headers for one in site.requests)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("http://169.254.169.254/latest/meta-data/", RefusedAddressError),
        ("http://metadata.google.internal/computeMetadata/v1/", RefusedAddressError),
        ("http://10.0.0.1/", RefusedAddressError),
        ("http://127.0.0.1:8080/", RefusedAddressError),
        ("http://localhost/", RefusedAddressError),
        ("http://inside.example/", RefusedAddressError),
        ("//[::1]/", RefusedAddressError),
        ("http://2130706433/", RefusedAddressError),
        ("http://0x7f.1/", RefusedAddressError),
        ("file:///etc/passwd", BadUrlError),
        ("ftp://example.com/x", BadUrlError),
        ("http://user:pw@example.com/", BadUrlError),
        ("http://example.com:22/", BadUrlError),
        ("http://[", BadUrlError),
        ("http://x:y/", RedirectError),
    ],
)
def test_a_redirect_to_what_is_refused_is_refused(
    site: Site, target: str, kind: type[FetchError]
) -> None:
    site.redirect("/", target)
    resolver = resolves(inside_example=["192.168.1.1"], localhost=["127.0.0.1"])
    settings = quick(site.rules, obey_robots=False)
    with pytest.raises(kind) as caught:
        fetch(site.url("/"), settings, resolver=resolver)
    assert caught.value.next_step
    assert len(site.requests) == 1


def test_endless_redirects_end(site: Site) -> None:
    site.redirect("/", "/")
    assert isinstance(refused(site), RedirectError)
    assert len(site.paths) == 6


def test_a_redirect_to_nowhere_is_an_error(site: Site) -> None:
    site.put("/", status=302)
    assert "without saying where" in refused(site).message


def test_a_body_that_says_it_is_too_long_is_not_read(site: Site) -> None:
    site.put("/", headers={"Content-Length": str(10**12)})
    error = refused(site)
    assert isinstance(error, TooLargeError) and "1,000,000,000,000 bytes" in error.message


def test_a_body_without_end_is_cut_off(site: Site) -> None:
    sent = 0

    async def pour(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        while sent < 100 * MIB:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    site.on("/", pour)
    error = refused(site, max_download=MIB)
    assert isinstance(error, TooLargeError) and "1,048,576" in error.message
    assert sent < 50 * MIB


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_stopped_while_it_unpacks(site: Site, coding: str) -> None:
    huge = b"0" * (60 * MIB)
    packed = gzip.compress(huge) if coding == "gzip" else zlib.compress(huge)
    assert len(packed) < MIB
    site.put("/", packed, headers={"Content-Encoding": coding})
    error = refused(site)
    assert isinstance(error, TooLargeError) and "unpacked" in error.message


def test_packings_on_top_of_each_other_are_refused(site: Site) -> None:
    site.put("/", gzip.compress(gzip.compress(b"x")), headers={"Content-Encoding": "gzip, gzip"})
    assert "gzip, gzip" in refused(site).message


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),  # bare, as old servers send it
        ("identity", bytes),
    ],
)
def test_packed_pages_are_unpacked(site: Site, coding: str, pack: object) -> None:
    assert callable(pack)
    site.put("/", pack(page().encode()), headers={"Content-Encoding": coding})
    assert fetch(site.url("/"), quick(site.rules)).content == page()


def test_packed_pages_that_break_off_or_are_no_packing_say_so(site: Site) -> None:
    site.put("/half", gzip.compress(page().encode())[:-20], headers={"Content-Encoding": "gzip"})
    site.put("/not", page(), headers={"Content-Encoding": "gzip"})
    site.put("/br", b"\x0b\x02", headers={"Content-Encoding": "br"})
    assert "breaks off" in refused(site, "/half").message
    assert "cannot be unpacked" in refused(site, "/not").message
    assert "'br'" in refused(site, "/br").message


def test_headers_without_end_are_cut_off(site: Site) -> None:
    async def pour(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            writer.write(f"X-{number}: {'y' * 1000}\r\n".encode())
            await writer.drain()

    site.on("/", pour)
    error = refused(site)
    assert isinstance(error, UnreachableError) and "no HTTP" in error.message


def test_what_is_no_http_is_an_error(site: Site) -> None:
    async def talk(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n\r\n")

    site.on("/", talk)
    assert isinstance(refused(site, obey_robots=False), UnreachableError)


def test_a_body_that_drips_is_given_up(site: Site) -> None:
    async def drip(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    site.on("/", drip)
    error = refused(site, total_s=0.4, obey_robots=False)
    assert isinstance(error, SlowPageError) and "0.4 s" in error.message


def test_headers_that_drip_are_given_up(site: Site) -> None:
    async def drip(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    site.on("/", drip)
    assert isinstance(refused(site, total_s=0.4, obey_robots=False), SlowPageError)


def test_a_silent_server_is_given_up(site: Site) -> None:
    async def wait(_request: Request, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    site.on("/", wait)
    error = refused(site, read_s=0.2)
    assert isinstance(error, SlowPageError) and "silent for 0.2 s" in error.message


def test_a_dead_port_and_an_unknown_name_are_errors(site: Site) -> None:
    with Site() as gone:
        url, rules = gone.url("/"), gone.rules
    with pytest.raises(UnreachableError, match="refused or dropped"):
        fetch(url, quick(rules))
    with pytest.raises(UnreachableError, match=r"name nowhere\.example cannot be resolved"):
        fetch("https://nowhere.example/", quick(AddressRules()), resolver=resolves())


def test_a_body_that_breaks_off_is_an_error(site: Site) -> None:
    site.put("/", page(), headers={"Content-Length": "100000"})
    assert isinstance(refused(site), UnreachableError)


@pytest.mark.parametrize(
    "kind", ["application/pdf", "image/png", "application/json", "text/xml", "video/mp4"]
)
def test_what_is_no_page_is_refused_before_it_is_read(site: Site, kind: str) -> None:
    site.put("/", b"\0" * 100, kind=kind)
    error = refused(site)
    assert isinstance(error, NotAPageError) and kind in error.message


def test_plain_text_and_pages_without_a_type_are_taken(site: Site) -> None:
    site.put("/text", "a < b", kind="text/plain; charset=utf-8")
    site.put("/html", page(), kind="")
    site.put("/binary", b"\0\1\2", kind="")
    assert not fetch(site.url("/text"), quick(site.rules)).html
    assert fetch(site.url("/html"), quick(site.rules)).html
    assert "binary data" in refused(site, "/binary").message


@pytest.mark.parametrize(
    ("status", "says"), [(404, "404 Not Found"), (403, "403 Forbidden"), (418, "418"), (599, "599")]
)
def test_error_statuses_are_errors_with_a_next_step(site: Site, status: int, says: str) -> None:
    site.put("/", "no", status=status)
    error = refused(site)
    assert isinstance(error, StatusError) and error.status == status and says in error.message


def fails_first(site: Site, status: int, headers: dict[str, str] | None = None) -> None:
    """The first request for / fails, the next succeed."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        if site.paths == ["/"]:
            more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
            writer.write(f"HTTP/1.1 {status} No\r\n{more}Content-Length: 0\r\n\r\n".encode())
        else:
            body = page().encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n")
            writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    site.on("/", answer)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_failure_that_may_pass_is_tried_again(site: Site, status: int) -> None:
    fails_first(site, status)
    clock = ManualClock()
    got = fetch(site.url("/"), quick(site.rules, retries=2), clock=clock)
    assert got.status == 200 and site.paths == ["/", "/"]


def test_a_failure_that_stays_is_tried_three_times(site: Site) -> None:
    site.put("/", status=503)
    with pytest.raises(StatusError, match="503"):
        fetch(site.url("/"), quick(site.rules, retries=2), clock=ManualClock())
    assert site.paths == ["/", "/", "/"]


def test_retry_after_is_obeyed(site: Site) -> None:
    fails_first(site, 429, {"Retry-After": "37"})
    clock = ManualClock()
    began = clock.now()
    fetch(site.url("/"), quick(site.rules, retries=2), clock=clock)
    assert clock.now() - began == pytest.approx(37)


def test_a_date_in_retry_after_is_obeyed(site: Site) -> None:
    clock = ManualClock()
    began = clock.now()
    at = datetime.datetime.fromtimestamp(began + 20, datetime.UTC)
    fails_first(site, 503, {"Retry-After": at.strftime("%a, %d %b %Y %H:%M:%S GMT")})
    fetch(site.url("/"), quick(site.rules, retries=2), clock=clock)
    assert 19 <= clock.now() - began <= 21


def test_retry_after_holds_back_every_page_of_the_host(site: Site) -> None:
    fails_first(site, 429, {"Retry-After": "30"})
    site.put("/other", page())
    clock = ManualClock()
    settings = quick(site.rules, retries=2, per_host=1, host_delay_s=1.0)
    began = clock.now()
    fetch_all([site.url("/"), site.url("/other")], settings, clock=clock)
    assert site.paths[0] == "/" and clock.now() - began >= 30


def test_a_wait_over_the_bound_is_not_waited_for(site: Site) -> None:
    fails_first(site, 429, {"Retry-After": "3600"})
    with pytest.raises(StatusError, match=r"asks to wait 3,600 s, longer than the 60 s"):
        fetch(site.url("/"), quick(site.rules, retries=2), clock=ManualClock())
    assert site.paths == ["/"]


def test_at_most_two_requests_at_once_go_to_one_host(site: Site) -> None:
    async def slow(_request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        body = page().encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)

    site.on("/", slow)
    fetch_all([site.url(f"/?{n}") for n in range(12)], quick(site.rules, obey_robots=False))
    assert site.most_open == 2 and len(site.paths) == 12


def test_requests_to_one_host_start_with_a_pause_between_them(site: Site) -> None:
    site.put("/", page())
    clock = ManualClock()
    began = clock.now()
    settings = quick(site.rules, host_delay_s=2.0, obey_robots=False)
    fetch_all([site.url(f"/?{n}") for n in range(6)], settings, clock=clock)
    assert clock.now() - began == pytest.approx(10)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Site, Path, list[str]]]:
    """A site behind TLS as `secure.example`, its certificate, and the names it was asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secure.example")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("secure.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path, private)
    asked: list[str] = []
    tls.sni_callback = lambda _socket, server_name, _context: asked.append(server_name)
    with Site(tls=tls) as running:
        yield running, path, asked


def test_tls_and_host_are_those_of_the_name_and_not_of_the_address(
    secure: tuple[Site, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, certificate, asked = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    site.put("/", page())
    resolver = resolves(secure_example=["127.0.0.1"], other_example=["127.0.0.1"])
    settings = quick(site.rules, obey_robots=False)
    assert fetch(site.url("/", "secure.example"), settings, resolver=resolver).status == 200
    assert asked == ["secure.example"]
    assert site.requests[-1].headers["host"] == f"secure.example:{site.port}"
    with pytest.raises(UnreachableError, match=r"certificate of other\.example does not hold"):
        fetch(site.url("/", "other.example"), settings, resolver=resolver)


def test_a_certificate_of_nobody_we_trust_is_refused(
    secure: tuple[Site, Path, list[str]],
) -> None:
    site, _, _ = secure
    with pytest.raises(UnreachableError, match="does not hold"):
        fetch(
            site.url("/", "secure.example"),
            quick(site.rules),
            resolver=resolves(secure_example=["127.0.0.1"]),
        )


def test_a_redirect_from_https_to_http_is_not_followed(
    secure: tuple[Site, Path, list[str]], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe, certificate, _ = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    site.put("/", page())
    safe.redirect("/", site.url("/"))
    rules = AddressRules.parse(f"127.0.0.1:{safe.port},127.0.0.1:{site.port}")
    with pytest.raises(RedirectError, match="from https to plain http"):
        fetch(
            safe.url("/", "secure.example"),
            quick(rules),
            resolver=resolves(secure_example=["127.0.0.1"]),
        )
    assert site.requests == []
