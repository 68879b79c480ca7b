"""The opening of connections: TCP, TLS with verification, and the proxies of the environment.

Law: returns connected streams and keeps none. Certificates are always verified.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.request import getproxies, proxy_bypass

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.ssrf import is_internal
from cached.transport.connection.stream import Deadline, Stream
from cached.transport.credentials import basic
from cached.transport.response import read_head
from cached.transport.urls import Address, Origin

# The result of getaddrinfo: family, kind, protocol, name, address.
Resolved = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
_METADATA_HOSTS = frozenset({"169.254.169.254", "fd00:ec2::254", "metadata.google.internal"})
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy and its `Proxy-Authorization` value."""

    origin: Origin
    authorization: str | None = field(repr=False)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("Proxy-Authorization", self.authorization),) if self.authorization else ()


@dataclass(frozen=True, slots=True)
class ConnectionKey:
    """The key of a connection: one to another origin, through another proxy, or opened for another host's redirect is
    never reused. `chosen_by`: the other host that redirected here, which excludes internal addresses."""

    origin: Origin
    proxy: Proxy | None
    chosen_by: Origin | None


class Connector:
    """Opens connections to origins, through the proxy that the environment names, if any. Thread-safe."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._proxies = {} if settings.is_direct else getproxies()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made for the first connection that needs it: to read the certificate authorities takes 20 ms."""
        context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
        context.set_alpn_protocols(["http/1.1"])
        return context

    def proxy_of(self, origin: Origin) -> Proxy | None:
        """Return the proxy for `origin`, None for a direct connection. Raises `Permanent` (`bad_proxy`)."""
        url = self._proxies.get(origin.scheme)
        if not url or self.is_bypassed(origin):
            return None
        address = Address.parse(url if "://" in url else f"http://{url}")
        if address.origin.scheme != "http":
            raise Permanent(
                "bad_proxy",
                f"expected an http:// proxy, found {address.origin.scheme}://{address.origin.netloc}",
                f"set {origin.scheme.upper()}_PROXY to http://host:port, or name the host in NO_PROXY",
            )
        return Proxy(address.origin, basic(*address.userinfo) if address.userinfo else None)

    def is_bypassed(self, origin: Origin) -> bool:
        """Return whether no proxy may be asked for `origin`: `NO_PROXY` names it, or it is a metadata service (each
        node has its own: a proxy would ask for the credentials of its node)."""
        if origin.host in _METADATA_HOSTS:
            return True
        return bool(proxy_bypass(origin.authority, self._proxies)) or self._in_bypassed_network(origin.host)

    def check_redirect(self, origin: Origin, chosen_by: Origin | None, cancellation: Cancellation) -> None:
        """Raise `Permanent` (`insecure_redirect`) if another host's redirect leads to this machine, as `open` does; for
        a request that another program sends. Raises `Transient` if the host has no address."""
        if chosen_by is None or chosen_by.host == origin.host:
            return
        deadline = time.monotonic() + self._settings.connect_timeout_s
        try:
            _check_not_internal(origin, chosen_by, resolve_within(origin.host, origin.port, deadline, cancellation))
        except OSError as error:
            cancellation.check()
            raise _connect_error(error, origin, origin.netloc) from error

    def open(self, route: ConnectionKey, cancellation: Cancellation) -> Stream:
        """Connect to the origin of `route`, with TLS if it is https, and attach the stream to `cancellation`. Raises
        `Transient`, `Permanent` or `Cancelled`."""
        origin, proxy = route.origin, route.proxy
        place = f"{origin.netloc} through the proxy {proxy.origin.netloc}" if proxy else origin.netloc
        wait_limit = Deadline(self._settings.header_timeout_s, place)
        # The current socket of the connection, closed if the next step fails.
        sockets: list[socket.socket] = []
        try:
            deadline = time.monotonic() + self._settings.connect_timeout_s
            asked = proxy.origin if proxy else origin
            addresses = resolve_within(asked.host, asked.port, deadline, cancellation)
            if route.chosen_by is not None:
                _check_not_internal(origin, route.chosen_by, [] if proxy else addresses)
            sockets = [_dial(addresses, deadline, cancellation)]
            if origin.scheme == "https":
                if proxy:
                    self._tunnel(sockets[0], proxy, origin, cancellation)
                # Wrapping moves the descriptor into a new object: the handshake starts only after that one can be
                # cancelled.
                cancellation.detach(sockets[0])
                secured = self._wrap_in_tls(sockets[0], origin.host)
                sockets = [secured]
                cancellation.attach(secured)
                secured.do_handshake()
            return Stream(sockets[0], self._settings.tick_s, cancellation, wait_limit)
        except BaseException as error:
            for sock in sockets:
                cancellation.detach(sock)
                sock.close()
            if isinstance(error, OSError):
                cancellation.check()
                raise _connect_error(error, origin, place) from error
            raise

    def _in_bypassed_network(self, host: str) -> bool:
        """Return whether `NO_PROXY` has a network (`10.0.0.0/8`) with `host` in it; urllib compares names only."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        for entry in self._proxies.get("no", "").split(","):
            with contextlib.suppress(ValueError):
                if "/" in entry and address in ipaddress.ip_network(entry.strip(), strict=False):
                    return True
        return False

    def _tunnel(self, sock: socket.socket, proxy: Proxy, origin: Origin, cancellation: Cancellation) -> None:
        wait_limit = Deadline(self._settings.header_timeout_s, f"the proxy {proxy.origin.netloc}")
        stream = Stream(sock, self._settings.tick_s, cancellation, wait_limit)
        headers = (("Host", origin.authority), ("User-Agent", self._settings.user_agent), *proxy.headers)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        stream.send(f"CONNECT {origin.authority} HTTP/1.1\r\n{lines}\r\n".encode("ascii"))
        status = read_head(stream, f"the proxy {proxy.origin.netloc}").status
        shown = f"the proxy {proxy.origin.netloc} answered {status} to CONNECT {origin.authority}"
        if status == 407:
            raise Permanent("proxy_unauthorized", shown, "put user and password into HTTPS_PROXY")
        if status // 100 != 2:
            raise Transient("connect", shown, "it is tried again; if it goes on, ask the operator of the proxy")

    def _wrap_in_tls(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        sock.settimeout(self._settings.connect_timeout_s)
        trust = self._settings.trust
        context, name = (self._tls, host) if trust is None else (trust.read_context(), trust.name)
        # Ragged ends stay errors: over TLS Python reports a reset by nothing else, and a truncated body has no clean
        # end.
        return context.wrap_socket(
            sock, server_hostname=name, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )


def _resolve(host: str, port: int) -> Sequence[Resolved]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def resolve_within(host: str, port: int, deadline: float, cancellation: Cancellation) -> Sequence[Resolved]:
    """Return the addresses of a host, as `socket.getaddrinfo` does. Raises OSError, of which TimeoutError where the
    name server stays silent until `deadline`, in monotonic seconds: the C library would wait for longer than a
    connection may take, and heeds neither a timeout nor a cancellation."""
    if _is_address(host):
        return _resolve(host, port)
    answers = queue.SimpleQueue[Sequence[Resolved] | OSError | None]()

    def resolve() -> None:
        try:
            answers.put(_resolve(host, port))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError("the name is no host name"))

    limits.start_thread(threading.Thread(target=resolve, name="resolve", daemon=True), f"resolving {host}")
    try:
        with cancellation.on_cancel(lambda: answers.put(None)):
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError(f"no answer of a name server for {host}") from None
    if isinstance(answer, OSError):
        raise answer
    cancellation.check()
    return answer or ()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _check_not_internal(origin: Origin, chosen_by: Origin, addresses: Sequence[Resolved]) -> None:
    """Refuse a redirect to this machine or its metadata service, unless the redirecting host is there too."""
    hosts = [origin.host, *(str(address[0]) for *_, address in addresses)]
    if any(map(is_internal, hosts)) and not any(
        is_internal(str(address[0])) for *_, address in _resolve(chosen_by.host, chosen_by.port)
    ):
        raise Permanent(
            "insecure_redirect",
            f"{chosen_by.netloc} redirects to {origin.netloc}, an address of this machine or of its cloud's metadata",
            "use the address of the file itself; ask the operator of the source for the reason",
        )


def _dial(addresses: Sequence[Resolved], deadline: float, cancellation: Cancellation) -> socket.socket:
    """Connect to the first address that answers before `deadline`, in monotonic seconds. Raises OSError of the last
    one."""
    failure: OSError = OSError("the name has no address")
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        sock = socket.socket(family, kind, protocol)
        try:
            cancellation.attach(sock)
            # A share of the remaining time: a first address that drops packets leaves time for the second.
            sock.settimeout(max(0.001, (deadline - time.monotonic()) / left))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            cancellation.check()
            return sock
        except BaseException as error:
            cancellation.detach(sock)
            sock.close()
            if not isinstance(error, OSError):
                raise
            cancellation.check()
            failure = error
    raise failure


def _connect_error(error: OSError, origin: Origin, place: str) -> HoldfastError:
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _NOT_YET_VALID:
        return Transient(
            "tls_verification",
            f"the certificate of {origin.netloc} is not valid yet",
            "set the node's clock: it is behind, or the origin's was ahead; it is tried again",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return Permanent(
            "tls_verification",
            f"the certificate of {origin.netloc} is not trusted: {error.verify_message}",
            f"check the name {origin.host} and the node's clock, or name the file of its authority in SSL_CERT_FILE",
        )
    short = limits.find_limit_error(error, f"connecting to {place}")
    if short is not None:
        return short
    reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
    if isinstance(error, ssl.SSLError):
        reason = f"TLS: {error.reason or 'the connection ended in the handshake'}"
    return Transient(
        "connect",
        f"cannot connect to {place}: {reason}",
        "it is tried again; if it goes on, check the host's name, its port and the network policy",
    )
