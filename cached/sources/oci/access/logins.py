"""The login for a registry: from Docker's configuration and the credential helpers that it names, else from the cloud
that the registry belongs to.

Law: a login is looked up when a token is asked for, so that a changed file applies at once. A helper is a process with
a bounded time and output; no part of its output is shown, and it gets no more than the registry's name.
Formats: docker/cli, `config.json`; docker-credential-helpers, "Development"; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cached.contract.errors import Permanent, Transient
from cached.transport.connection.cancel import Cancellation
from cached.transport.credentials import basic

_MAX_FILE_BYTES = 4 * 1024 * 1024
_MAX_OUTPUT_BYTES = 256 * 1024  # the longest tokens have some 10 KB
_HELPER_TIMEOUT_S = 30.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN_USER = "<token>"  # noqa: S105 - a helper's name for an identity token
_NOT_FOUND = (b"credentials not found in native keychain", b"credentials server URL")
_HUB_KEY = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class Login:
    """A user with a password, or an `identity` (an OAuth2 refresh token), or a `bearer` token for the registry itself.
    `lifetime_s`: how long it is valid, None if unknown."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity: str | None = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)
    lifetime_s: float | None = None

    @property
    def authorization(self) -> str:
        """The `Authorization` value of the user and the password."""
        return basic(self.user, self.password)


def find_docker_login(host: str, repository: str, cancellation: Cancellation) -> Login | None:
    """Return the login for `repository` at `host` in Docker's configuration; None without one. The first file counts
    that exists: REGISTRY_AUTH_FILE, DOCKER_CONFIG/config.json, ~/.docker/config.json. Raises `Permanent`
    (`bad_docker_config`, `credential_helper`) or `Transient` (`credential_helper`)."""
    path = _config_path()
    if path is None:
        return None
    document = _load(path)
    helpers = _mapping(path, document, "credHelpers")
    auths = _mapping(path, document, "auths")
    for key in _keys(host, repository):
        if key in helpers:
            return _ask_helper(path, helpers[key], _server_of(key), cancellation)
    own = next((_login(path, key, auths[key]) for key in _written_keys(host, repository, auths)), None)
    store = document.get("credsStore")
    if own is None and store:
        return _ask_helper(path, store, _server_of(host), cancellation)
    return own


def _config_path() -> Path | None:
    given = os.environ.get("REGISTRY_AUTH_FILE")
    folder = os.environ.get("DOCKER_CONFIG")
    if given:
        path = Path(given)
        if not path.is_file():
            raise _bad(path, "REGISTRY_AUTH_FILE names it, and there is no such file")
        return path
    path = (Path(folder) if folder else Path("~").expanduser() / ".docker") / "config.json"
    return path if os.path.isfile(path) else None  # not in a home that is another user's


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _bad(path, f"it cannot be read ({error.strerror})") from error
    if len(data) > _MAX_FILE_BYTES:
        raise _bad(path, f"expected at most {_MAX_FILE_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _bad(path, "expected JSON") from None  # its message may quote a password
    if not isinstance(document, dict):
        raise _bad(path, "expected a JSON object")
    return document


def _mapping(path: Path, document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise _bad(path, f"`{name}`: expected an object")
    return found


def _keys(host: str, repository: str) -> Iterator[str]:
    """Yield the names under which a registry is known, the most precise first: Kubernetes and containers-auth.json
    also know a repository and its folders."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((host, *parts[:count]))
    yield host
    if host == "docker.io":
        yield from (_HUB_KEY, "index.docker.io", "registry-1.docker.io")


def _written_keys(host: str, repository: str, auths: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of `auths` for the repository: some tools write them with a scheme and a path."""
    plain: dict[str, str] = {}
    for key in auths:
        bare = key.partition("://")[2] or key
        plain.setdefault(re.sub(r"/(v1|v2)?/?$", "", bare) or bare, key)
        plain[key] = key
    yield from (plain[key] for key in _keys(host, repository) if key in plain)


def _server_of(key: str) -> str:
    """Return the name by which helpers know a registry."""
    return _HUB_KEY if key.partition("/")[0] == "docker.io" else key


def _login(path: Path, key: str, entry: Any) -> Login | None:
    if not isinstance(entry, dict):
        raise _bad(path, f"`auths`, {key[:200]}: expected an object")
    given = {name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken", "registrytoken")}
    if not all(isinstance(value, str) for value in given.values()):
        raise _bad(path, f"`auths`, {key[:200]}: expected text values")
    user, password = given["username"], given["password"]
    if given["auth"]:
        try:
            text = base64.b64decode(given["auth"], validate=True).decode()
        except (binascii.Error, ValueError):
            raise _bad(path, f"`auths`, {key[:200]}: `auth` is not base64 of user:password") from None
        user, colon, password = text.partition(":")
        if not colon:
            raise _bad(path, f"`auths`, {key[:200]}: `auth` is not base64 of user:password")
        password = password.rstrip("\0")
    if given["registrytoken"]:
        return Login(bearer=given["registrytoken"])
    if given["identitytoken"]:
        return Login(user, identity=given["identitytoken"])
    # An entry without a secret says that the store has it.
    return Login(user, password) if user and password else None


def _ask_helper(path: Path, name: object, server: str, cancellation: Cancellation) -> Login | None:
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise _bad(path, "expected the name of a credential helper as ecr-login")
    program = f"docker-credential-{name}"
    found = shutil.which(program)
    if found is None:
        raise _helper_error(program, server, f"{path} names it, and it is not on PATH", Permanent)
    status, output = _run(found, program, server, cancellation)
    if status != 0:
        if any(sign in output for sign in _NOT_FOUND):
            return None
        raise _helper_error(program, server, f"ended with the status {status}", Transient)
    try:
        document = json.loads(output)
        user, secret = document["Username"], document["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        document = user = secret = None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise _helper_error(program, server, "expected JSON with Username and Secret, found something else", Permanent)
    if not secret:
        return None
    return Login(identity=secret) if user == _TOKEN_USER else Login(user, secret)


def _run(path: str, program: str, server: str, cancellation: Cancellation) -> tuple[int, bytes]:
    """Run `<helper> get`; return its status and its output, which may have a secret."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the helper that the configuration names
            [path, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise _helper_error(program, server, f"cannot be run ({error.strerror})", Permanent) from error
    late = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started

    def end_late() -> None:
        late.set()
        kill()

    clock = threading.Timer(_HELPER_TIMEOUT_S, end_late)
    clock.daemon = True
    clock.start()
    assert process.stdin is not None and process.stdout is not None
    try:
        with process, cancellation.on_cancel(kill):
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(server.encode())
                process.stdin.close()
            data = process.stdout.read(_MAX_OUTPUT_BYTES + 1)
            if len(data) > _MAX_OUTPUT_BYTES:
                kill()
    finally:
        clock.cancel()
    cancellation.check()
    if late.is_set():
        raise _helper_error(program, server, f"no answer in {_HELPER_TIMEOUT_S:.0f} s", Transient)
    if len(data) > _MAX_OUTPUT_BYTES:
        raise _helper_error(program, server, f"expected at most {_MAX_OUTPUT_BYTES} bytes of output", Permanent)
    return process.returncode, data


def _helper_error(
    program: str, server: str, problem: str, kind: type[Permanent] | type[Transient]
) -> Permanent | Transient:
    return kind(
        "credential_helper",
        f"the credential helper {program} for {server}: {problem}",
        f"run `echo {server} | {program} get` as this user and mend what it says, or take it out of config.json",
    )


def _bad(path: Path, problem: str) -> Permanent:
    return Permanent("bad_docker_config", f"{path}: {problem}", "correct it, or write it anew with `docker login`")
