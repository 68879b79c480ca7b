"""Requests to other nodes of the pool: announces, polls, questions for seeds and snapshots, and the signed addresses of
pieces.

Law: blocking, with short limits, directly (no proxy, no netrc, no redirect). What another node answers is bounded and
checked; an answer that is none counts as no answer.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.manifest import MAX_MANIFEST_BYTES
from cached.fetch.pool.peer_states import PeerState, PeerStates
from cached.fetch.pool.version import parse_load
from cached.node.log_once import LogOnce
from cached.peers import bits
from cached.peers.access import WINDOW_S, PoolKeys, SignedRequest, digest_content
from cached.peers.bundles import MAX_BUNDLE_BYTES, MAX_BUNDLED, RECORD_BYTES, encode_wanted
from cached.peers.chaining import STATE_BYTES
from cached.peers.members import Leads, parse_address, trackers_of
from cached.peers.messages import (
    MAX_BODY_BYTES,
    Announce,
    Reply,
    decode_announce,
    decode_holders,
    decode_reply,
    encode_announce,
)
from cached.peers.neighbours import Load
from cached.peers.pieces import MAX_PIECES, Piece
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.target import HttpTarget

_log = logging.getLogger(__name__)

T = TypeVar("T")
_OK, _UNAUTHORIZED = 200, 401
_REMEMBERED = 256  # versions
_MOST_BUNDLE = MAX_BUNDLE_BYTES + MAX_BUNDLED * RECORD_BYTES


class Members(Protocol):
    """The members of the pool."""

    def list_all(self) -> tuple[str, ...]:
        """Return all members, this node among them."""


class HttpPoolLink:
    """The way to the other nodes, over HTTP. `own_port`: where this node serves."""

    def __init__(
        self,
        client: HttpClient,
        members: Members,
        read_keys: Callable[[], PoolKeys],
        own_port: int,
        cancellation: Cancellation,
        scheme: str = "http",
    ) -> None:
        """`scheme`: `https` where the nodes of the pool speak TLS; `client` knows whom to trust."""
        self._scheme = scheme
        self.states = PeerStates()
        self._log_once = LogOnce(_log)
        self._leads: dict[str, Leads] = {}  # by version
        self._client = client
        self._members = members
        self._read_keys = read_keys
        self._own_port = own_port
        self._cancellation = cancellation

    def announce(self, message: Announce) -> Reply | None:
        """Announce to the first tracker of the version that answers, and tell the others which one that is; None if
        none does."""
        self.states.note_blames(message.blames)
        leads = self._leads_of(message.version)
        trackers = leads.list_trackers(self._members.list_all())
        for tracker in trackers:
            reply = self._announce_to(tracker, message)
            if reply is None:
                leads.lose(tracker, time.monotonic())
                continue
            leads.hear(reply.tracker, time.monotonic())
            for other in leads.list_untold(tracker, trackers, time.monotonic()):
                self._announce_to(other, Announce(message.version, message.pieces, "", 0, 0, tracker=tracker))
            return reply
        return None

    def _leads_of(self, version: str) -> Leads:
        found = self._leads.pop(version, None) or Leads(version)
        self._leads[version] = found
        if len(self._leads) > _REMEMBERED:
            del self._leads[next(iter(self._leads))]  # the one announced longest ago
        return found

    def _announce_to(self, tracker: str, message: Announce) -> Reply | None:
        path = f"/v1/announces/{self._own_port}"
        return self._post(tracker, path, encode_announce(message), lambda body: decode_reply(body, message.pieces))

    def ask_for_seed(self, peer: str, message: Announce) -> Announce | None:
        """Return what a node has of a version, which it announces from now on; None if it has nothing of it."""
        found = self._post(peer, "/v1/seeds", encode_announce(message), decode_announce)
        return found if found is not None and found.version == message.version else None

    def poll(self, peer: str, version: str, pieces: int) -> tuple[int, Load] | None:
        """Return what a peer has of a version, and its load; None if it does not answer."""

        def decode(answer: Response) -> tuple[int, Load]:
            return bits.decode(answer.body, pieces), parse_load(answer.headers.get("Holdfast-Load", ""))

        return self._get(peer, f"/v1/versions/{version}/pieces", MAX_BODY_BYTES, decode)

    def list_trackers(self, version: str) -> tuple[str, ...]:
        """Return the trackers of a version, the first to be asked first."""
        return self._leads_of(version).list_trackers(self._members.list_all())

    def read_chain(self, peer: str, version: str) -> bytes | None:
        """Return what a node says are the chaining values of a version; None if it does not say."""
        return self._get(peer, f"/v1/versions/{version}/chain", MAX_PIECES * STATE_BYTES, _body_of)

    def want_digests(self, peer: str, version: str) -> None:
        """Ask a node to tell the sha256 of a version's pieces."""
        self._get(peer, f"/v1/versions/{version}/digests", MAX_BODY_BYTES, _body_of)

    def find_holders(self, digest: Digest) -> tuple[str, ...] | None:
        """Ask the trackers of a manifest who has its snapshot, in their order; None if none of them answers."""
        for tracker in trackers_of(digest.hex, self._members.list_all()):
            path = f"/v1/holders/sha256/{digest.hex}"
            found = self._get(tracker, path, MAX_BODY_BYTES, lambda answer: decode_holders(answer.body))
            if found is not None:
                return found
        return None

    def has_snapshot(self, peer: str, digest: Digest) -> bool:
        """Return whether a node says that it has the snapshot of a manifest."""
        return self._get(peer, f"/v1/snapshots/sha256/{digest.hex}", MAX_BODY_BYTES, _body_of) is not None

    def read_manifest(self, peer: str, digest: Digest, cancellation: Cancellation) -> Response:
        """Return what a node answers to the question for a manifest. Raises as `HttpClient.fetch` does, for one of more
        than `MAX_MANIFEST_BYTES` too."""
        target = self._target(peer, "GET", f"/v1/manifests/sha256/{digest.hex}")
        with self._noting_failures(peer):
            answer = self._client.fetch(target, MAX_MANIFEST_BYTES, cancellation)
        self.states.note(peer, PeerState.LIVE)
        return answer

    def read_bundle(self, peer: str, sha256s: Sequence[str], cancellation: Cancellation) -> bytes:
        """Return the bundle of those of these small blobs that a node has. Raises `HoldfastError` or `Cancelled`."""
        body = encode_wanted(sha256s)
        target = self._target(peer, "POST", "/v1/blobs", "", digest_content(body))
        with self._noting_failures(peer):
            answer = self._client.post_any_status(target, body, _MOST_BUNDLE, cancellation)
        self._note_answer(peer, answer)
        if answer.status != _OK:
            raise Transient(f"http_{answer.status}", f"{peer}: no bundle", "another node is asked, or the source")
        return answer.body

    @contextlib.contextmanager
    def _noting_failures(self, peer: str) -> Iterator[None]:
        try:
            yield
        except HoldfastError as error:
            self.note_transfer(peer, error)
            raise

    def note_transfer(self, peer: str, error: HoldfastError | None) -> None:
        """Note that a piece came from a peer, or why not."""
        if error is None:
            self.states.note(peer, PeerState.LIVE)
        else:
            self.states.note_failure(peer, error)

    def target_of(self, peer: str, piece: Piece, version: str | None) -> HttpTarget:
        """Return the signed address of a range of a blob at a peer, which says with it what it has of `version`."""
        path = f"/v1/blobs/sha256/{piece.sha256}" + (f"?pieces={version}" if version else "")
        return self._target(peer, "GET", path, f"bytes={piece.start}-{piece.end - 1}")

    def _get(self, peer: str, path: str, limit_bytes: int, decode: Callable[[Response], T]) -> T | None:
        def send() -> Response:
            return self._client.fetch_any_status(self._target(peer, "GET", path), limit_bytes, self._cancellation)

        return self._ask(peer, send, decode)

    def _post(self, peer: str, path: str, body: bytes, decode: Callable[[bytes], T]) -> T | None:
        def send() -> Response:
            target = self._target(peer, "POST", path, "", digest_content(body))
            return self._client.post_any_status(target, body, MAX_BODY_BYTES, self._cancellation)

        return self._ask(peer, send, lambda answer: decode(answer.body))

    def _ask(self, peer: str, send: Callable[[], Response], decode: Callable[[Response], T]) -> T | None:
        """Return what `decode` makes of a peer's answer; None for an error, a refusal, and a ValueError of it."""
        try:
            answer = send()
        except (HoldfastError, Cancelled, ValueError) as error:
            self._note_failure(peer, error)
            return None
        self._note_answer(peer, answer)
        try:
            return decode(answer) if answer.status == _OK else None
        except ValueError:
            return None

    def _note_answer(self, peer: str, answer: Response) -> None:
        """Note that a peer answers; log once where it takes this node for a stranger: that needs a person."""
        if answer.status != _UNAUTHORIZED:
            self.states.note(peer, PeerState.LIVE)
            self._log_once.log_recovery(f"peer {peer}")
            return
        self.states.note(peer, PeerState.REFUSED)
        self._log_once.log_error(
            f"peer {peer}",
            f"refuses this node: all nodes of a pool need the same key, and clocks that differ by {WINDOW_S} s at most",
        )

    def _note_failure(self, peer: str, error: Exception) -> None:
        """Log that a peer does not prove to be of the pool, once: all else of a peer may pass, this needs a person."""
        if isinstance(error.__cause__, ssl.SSLError):
            self.states.note(peer, PeerState.REFUSED)
            self._log_once.log_error(f"peer {peer}", f"{error}; all nodes of a pool need --peer-tls-cert, or none")
        elif isinstance(error, HoldfastError):
            self.note_transfer(peer, error)

    def _target(self, peer: str, method: str, path: str, range_: str = "", digest: str = "") -> HttpTarget:
        parse_address(peer)
        signed = self._read_keys().sign(SignedRequest(method, path, range_, digest), time.time())
        headers = [("Authorization", signed)]
        if digest:
            headers.append(("Content-Digest", digest))
        return HttpTarget(f"{self._scheme}://{peer}{path}", headers=tuple(headers))


def _body_of(answer: Response) -> bytes:
    return answer.body
