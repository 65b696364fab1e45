"""A real MLflow server that dies and comes back, and a proxy before it that misbehaves."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

START_SECONDS = 180
DELAY_SECONDS = 5.0
UNFORWARDED = {"connection", "content-length", "host", "transfer-encoding"}


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def server_command(folder: Path, store_file: str = "server.db") -> list[str]:
    """An MLflow server as a hospital would run it: clients reach files through it alone."""
    store = ["--backend-store-uri", f"sqlite:///{folder / store_file}"]
    files = ["--artifacts-destination", str(folder / "served")]
    served = [*store, *files, "--host", "127.0.0.1", "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *served]


class Server:
    """An MLflow server on the loopback address, killed at the context's end or before.

    Args:
        folder: Holds its output and, by default, its store, which outlives it.
        command: Starts it, but for the port; `server_command` by default.
    """

    def __init__(self, folder: Path, command: Sequence[str] | None = None) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._command = command or server_command(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it answers."""
        output = self._folder / "server.log"
        with output.open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(self.port)],
                cwd=self._folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not come up:\n{output.read_text()}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and its workers as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def is_up(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()


class Mode(StrEnum):
    """What the proxy does with a request."""

    PASS = "pass"
    SLOW = "slow"
    """Answers after `DELAY_SECONDS`."""
    ERROR = "error"
    """Answers 500; every second time after the server has done what it was asked."""
    HANG = "hang"
    """Takes the request and never answers; every second time after the server has done it."""


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server as its `mode` says.

    Args:
        port: Of the server, on the loopback address.
        only: Part of a path; requests for others pass.
    """

    daemon_threads = True

    def __init__(self, port: int, only: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.only, self.mode, self.requests = port, only, Mode.PASS, 0
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _handle(self) -> None:
        mode = self.server.mode if self.server.only in self.path else Mode.PASS
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests += 1
        forwarded = mode in (Mode.PASS, Mode.SLOW) or self.server.requests % 2 == 0
        status, content, kind = self._forwarded(body) if forwarded else (500, b"", "text/plain")
        if mode is Mode.SLOW:
            time.sleep(DELAY_SECONDS)
        elif mode is Mode.ERROR:
            status, content, kind = 500, b"out of order", "text/plain"
        elif mode is Mode.HANG:
            while self.server.mode is Mode.HANG:
                time.sleep(0.1)
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _forwarded(self, body: bytes) -> tuple[int, bytes, str]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in UNFORWARDED}
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            kind = answer.headers.get("Content-Type", "application/octet-stream")
            return answer.status, answer.read(), kind
        except OSError:
            return 502, b"", "text/plain"
        finally:
            upstream.close()

    def handle_one_request(self) -> None:
        """As the base does; a client that has given up is nothing to report."""
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Nothing."""

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _handle  # noqa: N815
