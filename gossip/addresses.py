"""Addresses as the core sees them: text, host:port, that the driver knows how to dial. One property matters here."""

import ipaddress
from functools import lru_cache


# Pure, and the same addresses come again and again; parsing one takes microseconds.
@lru_cache(maxsize=4096)
def is_loopback(address: str) -> bool:
    """Whether host:port means the machine that reads it, so that it means another one to every reader elsewhere."""
    host = address.rpartition(":")[0].strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_unspecified  # dialled, 0.0.0.0 is this machine, too
