"""Who could connect to a command that runs."""

from __future__ import annotations

import ipaddress

import psutil


def listeners(pid: int) -> tuple[list[str], list[str]]:
    """Where a process and its descendants wait for connections: addresses of this machine alone, others."""
    ours, others = [], []
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        try:
            connections = one.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status != psutil.CONN_LISTEN:
                continue
            address = ipaddress.ip_address(connection.laddr.ip)
            mapped = getattr(address, "ipv4_mapped", None) or address
            where = ours if mapped.is_loopback else others
            where.append(f"{one.name()}: {address} port {connection.laddr.port}")
    return ours, others
