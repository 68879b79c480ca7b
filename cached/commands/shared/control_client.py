"""The client of the daemon's control socket: pull, gc, pin, unpin, verify, import, explain, status.

Law: HTTP/1.1 over a Unix socket, standard library only; every failure is a `HoldfastError` with a remedy.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cached.contract.archive.import_stream import PROTOCOL
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.program.options import DEADLINE_HEADER
from cached.contract.reference import ModelRef
from cached.contract.status import State

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_AT_ONCE_S = 1.0
_FULL_S = 0.01
_SUN_PATH_BYTES = 107  # sun_path in unix(7), less its final NUL


@dataclass(frozen=True, slots=True)
class EvictedVersion:
    """One version that `gc` evicted, or would evict, and the bytes that its removal frees; `last_used` of one that it
    would evict, as status files have times."""

    ref: ModelRef
    digest: str
    freed_bytes: int
    reason: str
    last_used: str | None = None


@dataclass(frozen=True, slots=True)
class GcReport:
    """The versions that `gc` evicted, or would evict, the bytes freed in all, and the daemon's answer. `staying`: of
    those that would stay, what keeps each."""

    versions: tuple[EvictedVersion, ...]
    freed_bytes: int
    staying: tuple[tuple[ModelRef, tuple[str, ...]], ...]
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UnpinResult:
    """The result of `unpin`: whether the catalog still pins the version, and whether `pin` had pinned it."""

    pinned: bool
    was_pinned: bool


@dataclass(frozen=True, slots=True)
class PullAnswer:
    """The daemon's answer to one pull. `id` is empty from an older daemon, which answers by the version's status alone;
    `digest` is set once the version is ready, `error` once this pull has failed."""

    id: str
    state: State
    digest: str | None
    error: HoldfastError | None


@dataclass(frozen=True, slots=True)
class FetchFiles:
    """The files of a running fetch that are being received: path, size in bytes (None: unknown), and bytes received;
    and how many of the others are `done`, and how many wait."""

    receiving: tuple[tuple[str, int | None, int], ...]
    done: int
    waiting: int


@dataclass(frozen=True, slots=True)
class NodeState:
    """The pods that wait, the longest first, `{"pod", "model", "version", "since"}` each, and the account of the disk,
    `{"capacity", "used", "reserved", "free", "error"}`, within the quota; None from an older daemon."""

    waiting: list[dict[str, Any]]
    disk: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class VerifyAnswer:
    """The outcome of a check by the daemon: `right`, `restored` or `withdrawn`; `problem` says why it is not `right`.
    `was_outdated`: the record did not fit files whose bytes are right. Sizes in bytes."""

    digest: str
    outcome: str
    problem: str
    was_outdated: bool
    seconds: float
    files: int
    size_bytes: int


class ControlClient:
    """Sends requests to the daemon of `layout`, each over its own connection. `timeout_s` bounds each request in all;
    the daemon gets this deadline and stops the command after it."""

    def __init__(self, layout: Layout, timeout_s: float = 30.0) -> None:
        self._socket = layout.socket
        self._root = layout.root
        self._timeout_s = timeout_s

    def pull(self, ref: ModelRef, digest: Digest | None, *, refresh: bool) -> PullAnswer:
        """Want `ref`, pinned to `digest` if given; with `refresh` resolve its source again. Return the first answer."""
        body = {**_named(ref), "digest": None if digest is None else str(digest), "refresh": refresh}
        return _pull_answer(self._ask("POST", "/v1/pull", body))

    def get_pull(self, id_: str) -> PullAnswer:
        """Return the current answer of a pull; raises `Permanent` (`unknown_pull`) once the daemon has dropped it."""
        return _pull_answer(self._ask("GET", f"/v1/pull/{id_}", None))

    def gc(self, *, dry_run: bool) -> GcReport:
        """Evict the versions without want, lease or pin; with `dry_run` only list them."""
        answer = self._ask("POST", "/v1/gc", {"dry_run": dry_run})
        versions = tuple(
            EvictedVersion(
                ModelRef(item["model"], item["version"]),
                item["digest"],
                item["bytes"],
                item["reason"],
                item.get("last_used"),
            )
            for item in answer["versions"]
        )
        staying = tuple(
            (ModelRef(item["model"], item["version"]), tuple(item["because"])) for item in answer.get("staying", ())
        )
        return GcReport(versions, answer["bytes"], staying, answer)

    def list_files(self, ref: ModelRef) -> FetchFiles:
        """Return how far each file of a running fetch is."""
        answer = self._ask("POST", "/v1/files", _named(ref))
        files = tuple((each["path"], each["bytes_total"], each["bytes_done"]) for each in answer["files"])
        return FetchFiles(files, answer["done"], answer["waiting"])

    def explain(self, target: ModelRef | str) -> dict[str, Any]:
        """Return the facts about a version, or about a pod and its versions; raises `Permanent` (`unknown_pod`)."""
        return self._ask("POST", "/v1/explain", {"pod": target} if isinstance(target, str) else _named(target))

    def pin(self, ref: ModelRef) -> bool:
        """Pin `ref`; return whether it is pinned now."""
        return bool(self._ask("POST", "/v1/pin", _named(ref))["pinned"])

    def unpin(self, ref: ModelRef) -> UnpinResult:
        """Unpin `ref`."""
        answer = self._ask("POST", "/v1/unpin", _named(ref))
        return UnpinResult(bool(answer["pinned"]), bool(answer["was_pinned"]))

    def verify(self, ref: ModelRef) -> VerifyAnswer:
        """Have `ref` hashed now, and its record renewed or itself repaired; return the outcome."""
        answer = self._ask("POST", "/v1/verify", _named(ref))
        return VerifyAnswer(
            digest=answer["digest"],
            outcome=answer["outcome"],
            problem=answer["problem"],
            was_outdated=bool(answer["was_outdated"]),
            seconds=answer["seconds"],
            files=answer["files"],
            size_bytes=answer["bytes"],
        )

    @contextmanager
    def begin_import(self, ref: ModelRef, *, replace: bool) -> Iterator[socket.socket]:
        """Begin the import of `ref`, with `replace` also over other content; yield the stream of `import_stream`, which
        waits without a limit."""
        headers = {"Content-Type": "application/json", "Connection": "Upgrade", "Upgrade": PROTOCOL}
        with closing(_UnixConnection(self._socket, self._timeout_s)) as connection:
            try:
                connection.request("POST", "/v1/import", json.dumps({**_named(ref), "replace": replace}), headers)
                response = connection.getresponse()
                if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
                    _read_answer(response.status, response.read(_MAX_ANSWER_BYTES), "/v1/import")
            except TimeoutError as error:
                raise self._silent("/v1/import") from error
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error
            connection.sock.settimeout(None)
            yield connection.sock

    def status(self) -> dict[str, Any]:
        """Return `{"daemon", "disk", "models"}` (design, section 8)."""
        return self._ask("GET", "/v1/status", None)

    def read_node_state(self) -> NodeState:
        """Return what `status` shows and no file has."""
        answer = self._ask("GET", "/v1/waiting", None)
        return NodeState(answer["pods"], answer.get("disk"))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        headers = {"Content-Type": "application/json", DEADLINE_HEADER: f"{deadline:.3f}"}
        with closing(_UnixConnection(self._socket, self._timeout_s)) as connection:
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
                response = connection.getresponse()
                return _read_answer(response.status, response.read(_MAX_ANSWER_BYTES), path)
            except TimeoutError as error:
                raise self._silent(path) from error
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error

    def _silent(self, path: str) -> Transient:
        return Transient(
            "daemon_silent",
            f"the daemon did not answer {path} within {self._timeout_s:g} s on {self._socket}",
            "read its log: it may be recovering, stopped, or blocked by a disk; it drops the command",
        )

    def _unreachable(self, error: Exception) -> HoldfastError:
        if isinstance(error, FileNotFoundError):
            return Permanent(
                "no_daemon",
                f"no daemon here: {self._socket} does not exist",
                f"start it with `holdfast daemon --root {self._root} --catalog FILE`, or name its root with --root",
            )
        if isinstance(error, ConnectionRefusedError):
            return Permanent(
                "no_daemon",
                f"the daemon of {self._root} is not running (its socket exists, without a listener)",
                f"start it with `holdfast daemon --root {self._root} --catalog FILE`",
            )
        if isinstance(error, PermissionError):
            return Permanent(
                "no_permission",
                f"may not open {self._socket}: {error.strerror}",
                "run as the daemon's user, often root: only it may change what is cached",
            )
        return Transient(
            "daemon_unreachable", f"talking to the daemon on {self._socket} failed: {error!r}", "try again"
        )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        if len(os.fsencode(self._path)) <= _SUN_PATH_BYTES:
            self._connect(os.fspath(self._path))
            return
        # A deep root does not fit the address; the opened folder has a short name in /proc.
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)

    def _connect(self, address: str) -> None:
        """Connect, and wait for room in the daemon's backlog, which a Unix socket with a timeout does not do itself."""
        deadline = time.monotonic() + (self.timeout or 0)
        while True:
            try:
                self.sock.connect(address)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(_FULL_S)


def _pull_answer(document: dict[str, Any]) -> PullAnswer:
    error = None if document.get("error") is None else _as_error(document["error"])
    return PullAnswer(document.get("pull", ""), State(document["state"]), document.get("digest"), error)


def _as_error(error: dict[str, Any]) -> HoldfastError:
    kind = Permanent if error.get("permanent", True) else Transient
    return kind(error.get("code", "unknown"), error.get("message", "no message"), error.get("remedy", ""))


def _named(ref: ModelRef) -> dict[str, Any]:
    return {"model": ref.name, "version": ref.version}


def _read_answer(status: int, data: bytes, path: str) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if status == 200 and isinstance(answer, dict):
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise Permanent(
            "bad_answer",
            f"expected JSON from the daemon at {path}, found status {status} and {data[:80]!r}",
            "check that the daemon and this command are of the same version (`holdfast --version`)",
        )
    raise _as_error({"message": f"status {status}", **error})


def ask_node_state(layout: Layout) -> NodeState | None:
    """Return what the daemon alone knows of its node; None where it does not answer this user at once."""
    try:
        return ControlClient(layout, _AT_ONCE_S).read_node_state()
    except HoldfastError:
        return None
