"""Which addresses belong to the public internet, and which URLs name such a host."""

from __future__ import annotations

import ipaddress
import re

import httpx

from airflow_provider_codegateway.inputs.words import describe

FORMS = "an https:// URL, an s3:// key, a file:// path on the worker, base64, or a base64 data URI"
_IPV4_NOT_PUBLIC = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "192.0.0.0/24",  # RFC 6890; Python before 3.11.10 knows only parts of it
        "168.63.129.16/32",  # Azure's host agent, reachable from every virtual machine there
    )
)
_IPV6_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_IPV6_NOT_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo, which embeds an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds an IPv4 address
        "3fff::/20",  # documentation
    )
)
# What DNS64 answers for a host that has IPv4 only, as in an IPv6-only subnet.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_INTERNAL_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, by the IANA registries."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip not in _NAT64:
            return ip in _IPV6_GLOBAL_UNICAST and not any(ip in network for network in _IPV6_NOT_PUBLIC)
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _IPV4_NOT_PUBLIC)


def parse_url(reference: str) -> httpx.URL:
    """An https URL whose host is not internal by what it says.

    Only the plain spelling of a host passes. Parsers differ on the others (white space that some drop,
    ``%31``, ``0x7f.1``), and the gateway's may read an address where this one reads a name.
    """
    shown = describe(reference)
    if re.search(r"[\s\\]", reference) or not reference.isprintable():
        raise ValueError(f"{shown} has white space or a backslash in it; percent-encode it")
    try:
        url = httpx.URL(reference)
    except httpx.InvalidURL:
        raise ValueError(f"{shown} is not a valid URL") from None
    if url.scheme != "https":
        raise ValueError(f"{shown} is not https; give {FORMS}")
    if url.userinfo:
        raise ValueError(f"{shown} has a user or password in it; give a URL that needs none, or an s3:// key")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError(f"{shown} has no valid port")

    host = url.raw_host.decode("ascii").lower()
    if ":" in host:
        if not is_public(host):
            raise ValueError(f"{shown} points at an internal address; give a public URL, or an s3:// key")
        return url
    name = host.removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{shown} has no valid host name")
    if _ENDS_IN_A_NUMBER.fullmatch(name):
        try:
            address = str(ipaddress.IPv4Address(name))
        except ValueError:
            raise ValueError(f"{shown} spells its address unusually; write four decimal numbers") from None
        if not is_public(address):
            raise ValueError(f"{shown} points at an internal address; give a public URL, or an s3:// key")
    elif "." not in name or any(f".{name}".endswith(f".{internal}") for internal in _INTERNAL_NAMES):
        raise ValueError(f"{shown} points at an internal host; give a public URL, or an s3:// key")
    return url
