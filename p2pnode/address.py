"""Addresses of nodes: `host:port`, as people type them and as the system names them. No trio: commands start fast."""

import ipaddress


class AddressError(ValueError):
    """Not of the form host:port."""


def parse_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        AddressError: the port is missing or not in [0, 65535], or a v6 address stands without brackets.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise AddressError(f"expected host:port, got {address!r:.200}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise AddressError(f"expected a port between 0 and 65535 after the last colon, got {address!r:.200}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"expected [address]:port for an IPv6 address, got {address!r:.200}")
    if not host or not host.isprintable() or any(mark in host for mark in " ,[]/@"):
        raise AddressError(f"expected host:port, got {address!r:.200}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_near(host: str) -> bool:
    """Whether `host` is this machine or on a private network, where many nodes share one address for good reasons.

    A name that is no IP address is near: links report numbers, so names occur in memory only.
    """
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    return number.is_private
