"""Which addresses a page may be fetched from."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.addresses import AddressRules, system_resolver
from batch_pipeline.fetch.errors import BadUrlError, FetchError, RefusedAddressError
from batch_pipeline_tests.fetch.site import resolves

NOWHERE = AddressRules()

PRIVATE = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
PRIVATE_V6 = [
    "::/96",
    "::1/128",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]

private_v4 = st.one_of([st.ip_addresses(v=4, network=network) for network in PRIVATE])
private_v6 = st.one_of([st.ip_addresses(v=6, network=network) for network in PRIVATE_V6])


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    """The ways to write an IPv4 address as a host, and the IPv6 addresses that hold it."""
    number = int(address)
    a, b, c, d = address.packed
    high, low = number >> 16, number & 0xFFFF
    return [
        str(address),
        f"{address}.",
        str(number),
        hex(number),
        f"0{number:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{low}",
        f"[::ffff:{address}]",
        f"[::{address}]",
        f"[64:ff9b::{high:x}:{low:x}]",
        f"[2002:{high:x}:{low:x}::1]",
        f"[2001:0:{high:x}:{low:x}::1]",
    ]


@given(private_v4, st.sampled_from(["http", "https"]))
def test_no_spelling_of_a_private_address_is_let_through(
    address: ipaddress.IPv4Address, scheme: str
) -> None:
    for host in spellings(address):
        with pytest.raises(FetchError) as caught:
            NOWHERE.check_url(f"{scheme}://{host}/latest/meta-data/")
        assert caught.value.next_step


@given(private_v6)
def test_no_ipv6_address_outside_the_public_internet_is_let_through(
    address: ipaddress.IPv6Address,
) -> None:
    with pytest.raises(RefusedAddressError):
        NOWHERE.check_url(f"http://[{address}]/")
    with pytest.raises(RefusedAddressError):
        asyncio.run(NOWHERE.resolve("name.example", 80, resolves(name_example=[str(address)])))


@given(st.ip_addresses())
def test_what_is_let_through_is_a_global_unicast_address(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    try:
        NOWHERE.check_address(address, "name.example", 80)
    except RefusedAddressError:
        return
    assert address.is_global and not address.is_multicast and not address.is_reserved


@pytest.mark.parametrize("host", ["93.184.215.14", "[2606:4700::6810:84e5]", "example.com"])
def test_public_hosts_are_let_through(host: str) -> None:
    assert str(NOWHERE.check_url(f"https://{host}/a?b=c")) == f"https://{host}/a?b=c"


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "100.100.100.200",
        "168.63.129.16",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
    ],
)
def test_metadata_addresses_are_refused_even_within_an_allowed_network(host: str) -> None:
    wide = AddressRules.parse("0.0.0.0/0, ::/0")
    with pytest.raises(RefusedAddressError, match="credentials"):
        wide.check_url(f"http://{host}/")


def test_a_metadata_address_behind_an_allowed_name_is_refused() -> None:
    rules = AddressRules.parse("intranet.example")
    resolver = resolves(intranet_example=["169.254.169.254"])
    with pytest.raises(RefusedAddressError, match="credentials"):
        asyncio.run(rules.resolve("intranet.example", 80, resolver))


def test_a_metadata_address_that_is_named_exactly_is_allowed() -> None:
    AddressRules.parse("169.254.169.254").check_url("http://169.254.169.254/")
    AddressRules.parse("metadata").check_url("http://metadata/")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///etc/passwd", "'file:' addresses"),
        ("ftp://example.com/x", "'ftp:' addresses"),
        ("gopher://example.com/", "'gopher:' addresses"),
        ("javascript:alert(1)", "'javascript:' addresses"),
        ("data:text/html,x", "'data:' addresses"),
        ("example.com/page", "no http:// or https://"),
        ("//example.com/page", "no http:// or https://"),
        ("https:///page", "no host"),
        ("https://%31%32%37.0.0.1/", "no host"),
        ("https://exa mple.com/", "no host"),
        ("https://user:secret@example.com/", "user name or password"),
        ("https://127.0.0.1\\@example.com/", "user name or password"),
        ("https://example.com:22/", "Port 22"),
        ("https://example.com:0/", "Port 0"),
        ("https://example.com:99999/", "Port 99999"),
        ("https://example.com/" + "a" * 9000, "9,020 characters"),
        ("https://①②⑦.0.0.1/", "not a web address"),
        ("https://example.com/a\nb", "not a web address"),
        ("", "no http:// or https://"),
    ],
)
def test_what_is_no_address_of_a_page_is_refused_saying_why(url: str, says: str) -> None:
    with pytest.raises(BadUrlError) as caught:
        NOWHERE.check_url(url)
    assert says in caught.value.message and caught.value.next_step
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "//", "http://["]))
def test_any_text_is_an_address_or_a_fetch_error(text: str, before: str) -> None:
    try:
        url = NOWHERE.check_url(before + text)
    except FetchError:
        return
    assert url.scheme in ("http", "https") and url.raw_host


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    resolver = resolves(mixed_example=["93.184.215.14", "10.0.0.7"])
    with pytest.raises(RefusedAddressError, match=r"mixed\.example leads to 10\.0\.0\.7"):
        asyncio.run(NOWHERE.resolve("mixed.example", 443, resolver))


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST"])
def test_names_that_really_lead_to_this_machine_are_refused(name: str) -> None:
    url = NOWHERE.check_url(f"http://{name}/")
    with pytest.raises(RefusedAddressError, match="loopback"):
        asyncio.run(NOWHERE.resolve(url.raw_host.decode(), 80, system_resolver))


def test_the_allow_list_takes_names_addresses_networks_and_ports() -> None:
    rules = AddressRules.parse(
        "intranet.example.com, 10.1.0.0/16,127.0.0.1:8000, [::1]:9000, fd12::/48"
    )
    for url in (
        "http://10.1.2.3/",
        "http://10.1.2.3:5000/",
        "http://127.0.0.1:8000/",
        "http://[::1]:9000/",
        "http://[fd12::5]/",
        "http://intranet.example.com:7777/",
    ):
        rules.check_url(url)
    for url in ("http://10.2.0.1/", "http://127.0.0.1/", "http://[::1]:9001/", "http://[fd13::1]/"):
        with pytest.raises(FetchError):
            rules.check_url(url)
    inside = resolves(intranet_example_com=["10.9.9.9"], other_example=["10.9.9.9"])
    found = asyncio.run(rules.resolve("intranet.example.com", 80, inside))
    assert found == ["10.9.9.9"]
    with pytest.raises(RefusedAddressError):
        asyncio.run(rules.resolve("other.example", 80, inside))


@pytest.mark.parametrize(
    "text", ["http://x", "10.1.0.0/99", "a b", "127.0.0.1:0", "127.1", "0x7f000001", "x:99999", "*"]
)
def test_an_allow_list_that_cannot_be_read_names_the_entry(text: str) -> None:
    with pytest.raises(UsageError, match="BATCH_PIPELINE_FETCH_ALLOW"):
        AddressRules.parse(f"good.example, {text}")
