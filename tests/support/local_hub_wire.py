"""Requests and answers on the wire, and the faults that a test asked for."""

import contextlib
import json
import re
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from local_hub import Fault, LocalHub

Json = dict[str, Any]
Headers = dict[str, str]
Answer = tuple[Json | list[Json] | bytes, Headers]


class Refused(Exception):  # noqa: N818
    def __init__(
        self, status: int, code: str | None = None, message: str = "", body: Json | bytes | None = None
    ) -> None:
        self.status, self.code, self.message, self.body = status, code, message, body
        self.headers: Headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class WireHandler(BaseHTTPRequestHandler):
    """Finds the method of a request in `ROUTES`: methods, pattern of the path, name."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart: 40 ms each otherwise
    hub: "LocalHub"
    ROUTES: tuple[tuple[str, str, str], ...] = ()

    def log_message(self, *_: object) -> None:
        pass

    def _dispatch(self) -> None:
        path = urlsplit(self.path).path
        target = unquote(f"{self.command} {path}")
        fault = self._fault(target)
        # The client asks now and then for a list of programs that it tells apart, whatever it is used for.
        if target != "GET /api/agent-harnesses":
            self.hub.requests.append(target)
        self.payload = self._read_body(fault)
        try:
            if fault is not None:
                time.sleep(fault.delay)
                if fault.drop == "silence":
                    self.connection.recv(1)  # until the client hangs up
                if fault.drop in ("request", "silence"):
                    return self._hang_up()
                if fault.status is not None or fault.body is not None or fault.location is not None:
                    raise _refusal(fault)
            answer = self._route(path)
            if fault is not None and fault.drop == "answer":
                return self._hang_up()
            if fault is not None and (fault.cut or fault.say is not None):
                return self._answer_partly(fault, *answer)
            return self._answer(200, *answer)
        except Refused as refused:
            body = {"error": refused.message} if refused.body is None else refused.body
            return self._answer(refused.status, body, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch  # noqa: N815

    def _fault(self, target: str) -> "Fault | None":
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and re.search(fault.pattern, target):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _route(self, path: str) -> Answer:
        for methods, pattern, name in self.ROUTES:
            if self.command in methods.split("|") and (match := re.fullmatch(pattern, path)):
                parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                with self.hub.lock:
                    return getattr(self, name)(**parts)
        raise Refused(404, message=f"no route for {self.command} {path}")

    def _read_body(self, fault: "Fault | None") -> bytes:
        """The whole of it; of a request that is to break off, about half."""
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        length = int(self.headers.get("Content-Length") or 0)
        first = b"" if chunked else self.rfile.read(length // 2)
        if fault is not None and fault.call is not None:
            fault.call()
        if fault is not None and fault.drop == "request":
            return first
        return self._read_chunks() if chunked else first + self.rfile.read(length - len(first))

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self) -> None:
        """Close with a reset, as a broken line does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _answer_partly(self, fault: "Fault", body: Json | list[Json] | bytes, headers: Headers) -> None:
        """Another length than is said, and nothing after it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        said = len(data) if fault.say is None else fault.say
        self.close_connection = True
        self.send_response(200)
        for name, value in ({"Content-Length": str(said)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if fault.cut else data[:said])

    def _answer(self, status: int, body: Json | list[Json] | bytes, headers: Headers) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _refusal(fault: "Fault") -> Refused:
    refused = Refused(fault.status or (302 if fault.location else 200), message=fault.message)
    if fault.body is not None:
        refused.body = fault.body
    if fault.location is not None:
        refused.headers["Location"] = fault.location
    if fault.page:
        refused.body = b"<html>Bad gateway</html>"
        refused.headers["Content-Type"] = "text/html"
    if fault.retry_after is not None:
        refused.headers["Retry-After"] = str(fault.retry_after)
    return refused
