"""A threaded HTTP server that answers in JSON and trusts no client: everything that a request can take is bounded.

A connection takes a thread; more than `max_connections` are refused by 503. A whole request, head and body, arrives
within `SECONDS_TO_ARRIVE`, or its connection is closed. A body has a `Content-Length` that is checked before it is
read. A client that leaves costs its answer and nothing else.
"""

import contextlib
import json
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from common.errors import UserError

SECONDS_TO_ARRIVE = 60.0  # of a whole request, or until the next one of a connection
SECONDS_TO_LINGER = 2.0  # reading what an over-long request still sends, so that its client reads the answer
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"


class RequestError(UserError):
    """A request that is refused by a status of its own."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class JsonServer(ThreadingHTTPServer):
    """Serves `handler` at a host and a port; `UserError` if that cannot be used."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type["JsonHandler"], max_connections: int = 64):
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port} cannot be used: {error}; 0 takes any free one") from error
        self.seconds_to_arrive, self.max_connections = SECONDS_TO_ARRIVE, max_connections
        self._slots = threading.BoundedSemaphore(max_connections)
        self._deadlines: dict[socket.socket, float] = {}

    def server_bind(self) -> None:
        """Bind without looking the host's name up, which waits where there is no network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread, or refuse it."""
        if self._slots.acquire(blocking=False):
            self.await_request(request)
            super().process_request(request, client_address)
            return
        content = json.dumps({"error": {"message": f"expected at most {self.max_connections} connections"}}).encode()
        request.settimeout(1)
        with contextlib.suppress(OSError):
            request.sendall(BUSY + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection and give its slot back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.await_answer(request)
            self._slots.release()

    def await_request(self, connection: socket.socket) -> None:
        """Give a connection a deadline for its next request."""
        self._deadlines[connection] = time.monotonic() + self.seconds_to_arrive

    def await_answer(self, connection: socket.socket) -> None:
        """Lift a connection's deadline: its request is here."""
        self._deadlines.pop(connection, None)

    def service_actions(self) -> None:
        """Close the connections past their deadline; `serve_forever` calls this twice a second."""
        now = time.monotonic()
        for connection in [one for one, deadline in list(self._deadlines.items()) if deadline < now]:
            self.await_answer(connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that left; a defect keeps its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class JsonHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: JsonServer
    protocol_version = "HTTP/1.1"
    timeout = SECONDS_TO_ARRIVE  # of one read or write
    disable_nagle_algorithm = True
    _unread = False  # whether a body is still to be read

    def parse_request(self) -> bool:
        """Return whether the head of a request is one; without a body the request is here."""
        if not super().parse_request():
            return False
        self._unread = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        if not self._unread:
            self.server.await_answer(self.connection)
        return True

    def do_GET(self) -> None:
        """Answer about what is."""
        self.respond()

    def do_POST(self) -> None:
        """Answer a question in the body, or move on."""
        self.respond()

    def respond(self) -> None:
        """Answer the request of `command`, `path` and `headers`."""
        raise NotImplementedError

    def handle_one_request(self) -> None:
        """Answer one request, and wait for the next."""
        super().handle_one_request()
        self.server.await_request(self.connection)

    def read_body(self, limit: int, what: str) -> bytes:
        """Return the body, which is `what`; `RequestError` if its length is missing or above the limit."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, f"expected {what} with a Content-Length, got none")
        if len(length) > 12 or int(length) > limit:
            message = f"expected {what} of up to {limit:,} bytes, got {length[:12]}"
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        if not int(length):
            raise RequestError(HTTPStatus.BAD_REQUEST, f"expected {what} of up to {limit:,} bytes, got none")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError("the client left within its body")
        self._unread = False
        self.server.await_answer(self.connection)
        return body

    def send_json(self, status: int, content: dict[str, Any]) -> None:
        """Send JSON values."""
        self.send(status, "application/json", json.dumps(content).encode())

    def send(self, status: int, kind: str, content: bytes) -> None:
        """Send bytes of a media type; the connection ends if a body is left, which is no request."""
        self.close_connection |= self._unread
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if self.close_connection:
            self._linger()

    def _linger(self) -> None:
        """Read on for a moment: a connection that is closed on unread bytes loses its answer."""
        end = time.monotonic() + SECONDS_TO_LINGER
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(2**16):
                    return
        except OSError:
            return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send a refusal of `http.server` as JSON in one line."""
        self.close_connection = True
        self.send_json(code, {"error": {"message": message or HTTPStatus(code).phrase}})

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
