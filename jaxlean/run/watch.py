"""A line between processes that says at once when one of them is gone.

jax's collectives wait for a dead process for ever, and its coordination service notices after minutes, or ends the
survivors with a page of C++. So the first process has a TCP connection to each other one (a star), over which a thread
of each sends a sign of life every few seconds and what else is to be said, one JSON object a line. A connection that
closes without a goodbye, or stays silent for too long (a machine without power closes nothing), is a dead process.
"""

import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

BEAT_SECONDS = 2.0
# Long enough for a process that holds the interpreter's lock while it reads a large tensor, and below a minute.
SILENT_SECONDS = 45.0


class Line:
    """The connections of one process.

    Args:
        peers: connection of each process that this one is connected to.
        hosts: the names of their machines.
        heard: called in the line's thread with (process, message).
        lost: called in the line's thread with (process, its machine, how it was noticed); once a process.
    """

    def __init__(
        self,
        peers: dict[int, socket.socket],
        hosts: dict[int, str],
        heard: Callable[[int, Message], None],
        lost: Callable[[int, str, str], None],
    ):
        self._sockets, self.hosts, self._heard, self._lost = peers, hosts, heard, lost
        self._rest = dict.fromkeys(peers, b"")
        self._last = dict.fromkeys(peers, time.monotonic())
        self._parted: set[int] = set()
        self._locks = {process: threading.Lock() for process in peers}
        self._woken, self._wake = os.pipe()
        self._closed = False
        self._on_wake: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Watch from here on."""
        self._thread.start()

    def say(self, message: Message, to: int | None = None) -> None:
        """Send a message to one process, or to all that are connected; to one that is gone it is lost."""
        for process in [to] if to is not None else list(self._sockets):
            self._send(process, json.dumps(message).encode() + b"\n")

    def wake(self, then: Callable[[], None]) -> None:
        """Have the line's thread call `then`; safe in a signal handler."""
        self._on_wake = then
        os.write(self._wake, b"!")

    def part(self, process: int) -> None:
        """What the process does from here on is no alarm."""
        self._parted.add(process)

    def all_parted(self, *, within: float) -> bool:
        """Wait until every other process said goodbye or closed its connection."""
        end = time.monotonic() + within
        while len(self._parted) < len(self._sockets) and time.monotonic() < end:
            if threading.current_thread() is self._thread:
                self._listen(0.05)
            else:
                time.sleep(0.05)
        return len(self._parted) == len(self._sockets)

    def close(self) -> None:
        """Close every connection; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._parted.update(self._sockets)
        os.write(self._wake, b".")
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)
        for connection in self._sockets.values():
            connection.close()
        os.close(self._woken)
        os.close(self._wake)

    def _send(self, process: int, line: bytes) -> None:
        try:
            with self._locks[process]:
                self._sockets[process].sendall(line)
        except OSError:
            pass  # the thread reads the same from the connection, and knows what to do

    def _run(self) -> None:
        beat = 0.0
        while len(self._parted) < len(self._sockets):
            now = time.monotonic()
            if now >= beat:
                beat = now + BEAT_SECONDS
                self.say({"kind": "alive"})
            self._listen(BEAT_SECONDS / 4)
            now = time.monotonic()
            for process in self._open():
                if now - self._last[process] > SILENT_SECONDS:
                    self._gone(process, f"no sign of life for {SILENT_SECONDS:.0f} seconds")

    def _open(self) -> list[int]:
        return [process for process in self._sockets if process not in self._parted]

    def _listen(self, seconds: float) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._woken, selectors.EVENT_READ, None)
            for process in self._open():
                ready.register(self._sockets[process], selectors.EVENT_READ, process)
            found = [key.data for key, _ in ready.select(seconds)]
        for process in found:
            if process is not None:
                self._read(process)
            elif b"!" in os.read(self._woken, 64) and self._on_wake is not None:
                self._on_wake()

    def _read(self, process: int) -> None:
        try:
            found = self._sockets[process].recv(1 << 16)
        except OSError:
            found = b""
        if not found:
            self._gone(process, "its connection is closed")
            return
        self._last[process] = time.monotonic()
        *lines, self._rest[process] = (self._rest[process] + found).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["kind"] != "alive":
                self._heard(process, message)

    def _gone(self, process: int, how: str) -> None:
        if process not in self._parted:
            self._parted.add(process)
            self._lost(process, self.hosts[process], how)


class Meeting:
    """Where the first process waits for the others' connections."""

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=128, dualstack_ipv6=both)
        self._token = secrets.token_hex(16)

    @property
    def ticket(self) -> str:
        """What another process must know to connect."""
        return f"{self._listener.getsockname()[1]} {self._token}"

    def wait(self, num: int, seconds: float) -> tuple[dict[int, socket.socket], dict[int, str]]:
        """The connections of processes 1 to num - 1, and the names of their machines.

        Raises:
            TimeoutError: not all came.
        """
        peers: dict[int, socket.socket] = {}
        hosts: dict[int, str] = {}
        end = time.monotonic() + seconds
        with self._listener:
            while len(peers) < num - 1:
                self._listener.settimeout(max(end - time.monotonic(), 0.01))
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    for connection in peers.values():
                        connection.close()
                    missing = sorted(set(range(1, num)) - set(peers))
                    raise TimeoutError(f"no connection from process {', '.join(map(str, missing))}") from None
                try:
                    connection.settimeout(10)
                    hello = json.loads(_line(connection))
                    if not secrets.compare_digest(str(hello["token"]), self._token):
                        raise ValueError("a stranger")
                except (ValueError, KeyError, TypeError, OSError):
                    connection.close()  # somebody who looks for open ports
                    continue
                connection.sendall(json.dumps({"host": socket.gethostname()}).encode() + b"\n")
                peers[hello["process"]], hosts[hello["process"]] = _prepared(connection), hello["host"]
        return peers, hosts


def connect(host: str, ticket: str, index: int, seconds: float) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """The connection to the first process, and the name of its machine.

    Raises:
        OSError: it cannot be reached.
    """
    port, token = ticket.split()
    connection = socket.create_connection((host, int(port)), timeout=seconds)
    hello = {"token": token, "process": index, "host": socket.gethostname()}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    welcome = json.loads(_line(connection))
    return {0: _prepared(connection)}, {0: welcome["host"]}


def _prepared(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(SILENT_SECONDS)
    return connection


def _line(connection: socket.socket) -> bytes:
    """The first line, and no byte of what follows it."""
    found = b""
    while not found.endswith(b"\n") and len(found) < 1000:
        byte = connection.recv(1)
        if not byte:
            raise OSError("closed before it said who it is")
        found += byte
    return found
