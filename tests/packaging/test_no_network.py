"""The guard of conftest.py holds: a test cannot leave the machine."""

import socket
import urllib.request

import pytest

OUTSIDE = "192.0.2.1"  # TEST-NET-1: never routed (RFC 5737)


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_a_connection_to_another_machine_raises(call: str) -> None:
    with socket.socket() as sock, pytest.raises(RuntimeError, match=OUTSIDE):
        getattr(sock, call)((OUTSIDE, 80))


def test_a_look_up_of_a_name_raises() -> None:
    with pytest.raises(RuntimeError, match=r"example\.com"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://example.com")


def test_loopback_is_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
