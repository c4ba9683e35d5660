"""The names and addresses under which clients reach a service: of its certificate, and of the Host header."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import psutil

#: The names that every local service has.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: The ports that a client leaves out of the Host header (RFC 9110, section 4.2).
_USUAL = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone.

    :param host: a host name or an IP address.
    :return: whether it does.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def others(host: str) -> list[str]:
    """The names, beside those of loopback, under which clients find a service.

    :param host: the address that it listens on. One such as ``0.0.0.0`` stands for all of this machine's.
    :return: host names and addresses.
    """
    if is_loopback(host):
        return [] if host in LOOPBACK else [host]
    if not _is_any(host):
        return [host, socket.gethostname()]
    families = {socket.AF_INET} | ({socket.AF_INET6} if ":" in host else set())
    found = (each for addresses in psutil.net_if_addrs().values() for each in addresses if each.family in families)
    # What a link-local address is, differs from machine to machine: no certificate and no header can name it.
    addresses = {each.address for each in found if "%" not in each.address}
    return [socket.gethostname(), *sorted(addresses - {*LOOPBACK})]


def accepted(names: Iterable[str], port: int, scheme: str) -> frozenset[str]:
    """The values of the Host header that name a service: no other is answered, whatever name leads here.

    :param names: its names and addresses.
    :param port: its port.
    :param scheme: ``http`` or ``https``.
    :return: the values, in lower case.
    """
    shown = [bracketed(name).lower() for name in names]
    bare = shown if _USUAL.get(scheme) == port else []
    return frozenset([*(f"{name}:{port}" for name in shown), *bare])


def url(host: str, port: int, scheme: str) -> str:
    """The address by which this machine reaches a service.

    :param host: the address that it listens on.
    :param port: its port.
    :param scheme: ``http`` or ``https``.
    :return: the address, such as ``http://127.0.0.1:1234``.
    """
    if _is_any(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://{bracketed(host)}:{port}"


def bracketed(name: str) -> str:
    """A name or address as it stands in a URL.

    :param name: it; an IPv6 address without brackets.
    """
    return f"[{name}]" if ":" in name else name


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
