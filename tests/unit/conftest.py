"""Fixtures of tests with a park."""

import socket
from collections.abc import Iterator

import pytest
from park_world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and the server's."""
    client, request = socket.socketpair()
    yield client, request
    client.close()
    request.close()
