"""Who could connect to a command that runs."""

from __future__ import annotations

import ipaddress
import socket

import psutil


def open_to_others() -> dict[str, str]:
    """Environment in which ranks would listen on an interface that other machines reach, had they the choice.

    Where the machine's own name means 127.0.0.1, as in many containers, they listen there without being told.
    """
    up = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        there = [one.address for one in addresses if one.family is socket.AF_INET]
        if up[name].isup and any(not ipaddress.ip_address(one).is_loopback for one in there):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


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
