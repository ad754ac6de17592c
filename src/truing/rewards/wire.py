"""Messages between a run and its reward process: a length (8 bytes, most significant first), then that much JSON."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

HEAD = struct.Struct(">Q")
LARGEST = 1 << 30


def pack(message: Any) -> bytes:
    """A message as bytes; texts may hold anything, lone surrogates included."""
    body = json.dumps(message).encode("ascii")
    return HEAD.pack(len(body)) + body


class Incoming:
    """Collects bytes until a message is whole."""

    def __init__(self) -> None:
        self.held = bytearray()

    def feed(self, data: bytes) -> None:
        self.held += data

    def take(self) -> Any:
        """The next message, or None while it is not complete. Raises ValueError for what cannot be one."""
        if len(self.held) < HEAD.size:
            return None
        (length,) = HEAD.unpack_from(self.held)
        if length > LARGEST:
            raise ValueError(f"a message of {length} bytes")
        if len(self.held) < HEAD.size + length:
            return None
        body = bytes(self.held[HEAD.size : HEAD.size + length])
        del self.held[: HEAD.size + length]
        return json.loads(body)


def receive(channel: socket.socket, incoming: Incoming) -> Any:
    """Wait for a message; None at the end of the stream."""
    while (message := incoming.take()) is None:
        data = channel.recv(1 << 16)
        if not data:
            return None
        incoming.feed(data)
    return message
