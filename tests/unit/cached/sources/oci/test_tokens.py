"""Logins and tokens, asked of a real registry with token authentication, and with a password file."""

from __future__ import annotations

import base64
import json
import logging
import stat
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.oci.access.logins import find_docker_login
from cached.sources.oci.source import OciSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget
from tests.support.http_server import serve_http
from tests.support.registry import RunningRegistry, docker_registry
from tests.support.registry_tokens import IDENTITY, PASSWORD, USER, RegistryTokens, registry_tokens

BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningRegistry, RegistryTokens]]:
    """A registry that wants tokens, with the artifact team/m:v1, which another one put into its storage."""
    folder = tmp_path_factory.mktemp("guarded")
    with docker_registry(folder / "r") as before:
        before.put_raw("team/m", "v1", {"w.bin": b"weights", "config.json": b"{}"})
    with registry_tokens(folder) as tokens, docker_registry(folder / "r", more=tokens.settings) as after:
        yield after, tokens


def log_in(config: Path, host: str, **entry: str) -> None:
    (config / "config.json").write_text(json.dumps({"auths": {host: entry}}))


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Install the credential helper `docker-credential-<name>`."""
    program = tmp_path / "bin" / f"docker-credential-{name}"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


async def read_all(uri: str, client: HttpClient) -> dict[str, bytes]:
    source = OciSource(uri, client)
    found = {}
    for file in (await source.resolve()).files:
        target = await source.locate(file)
        assert isinstance(target, HttpTarget) and target.lifetime_s is not None
        found[file.path] = client.fetch(target, 1 << 20, Cancellation()).body
    return found


async def refusal(uri: str, client: HttpClient) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await read_all(uri, client)
    shown = f"{caught.value!r} {caught.value}"
    assert caught.value.remedy
    assert not any(secret in shown for secret in (PASSWORD, BASIC, IDENTITY, "s3cret"))
    return caught.value


async def test_a_login_of_dockers_configuration_gets_the_token(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    """One token serves manifest and files, is asked for with the right to pull only, and is in no log."""
    registry, tokens = guarded
    caplog.set_level(logging.DEBUG)
    log_in(config, registry.host, auth=BASIC)
    before = len(tokens.issued)
    assert await read_all(f"oci://{registry.host}/team/m:v1", client) == {"w.bin": b"weights", "config.json": b"{}"}
    assert len(tokens.issued) == before + 1
    assert tokens.asked[-1]["scope"] == "repository:team/m:pull"
    assert tokens.issued[-1] not in caplog.text and BASIC not in caplog.text


@pytest.mark.parametrize(
    "entry",
    [{"username": USER, "password": PASSWORD}, {"auth": BASIC, "identitytoken": IDENTITY}],
    ids=["plain", "identity"],
)
async def test_every_form_of_a_login_is_understood(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient, entry: dict[str, str]
) -> None:
    """User and password, and an identity token, which goes by POST, get a token too."""
    registry, _ = guarded
    log_in(config, f"https://{registry.host}/v2/", **entry)
    assert set(await read_all(f"oci://{registry.host}/team/m:v1", client)) == {"w.bin", "config.json"}


@pytest.mark.parametrize("where", ["credHelpers", "credsStore"])
async def test_a_credential_helper_is_run_for_the_registry_only(
    guarded: tuple[RunningRegistry, RegistryTokens],
    config: Path,
    client: HttpClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The helper that the configuration names gets the registry's name on its input, and gives the login."""
    registry, _ = guarded
    answer = json.dumps({"ServerURL": registry.host, "Username": USER, "Secret": PASSWORD})
    helper(tmp_path, monkeypatch, "test", f"cat > {tmp_path}/asked; echo '{answer}'")
    named = {registry.host: "test"} if where == "credHelpers" else "test"
    (config / "config.json").write_text(json.dumps({where: named, "auths": {registry.host: {}}}))
    assert set(await read_all(f"oci://{registry.host}/team/m:v1", client)) == {"w.bin", "config.json"}
    assert (tmp_path / "asked").read_text() == registry.host


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("echo s3cret; exit 0", "credential_helper"),
        ("echo s3cret >&2; echo s3cret; exit 3", "credential_helper"),
        ("yes s3cret", "credential_helper"),
        ("echo 'credentials not found in native keychain'; exit 1", "unauthorized"),
    ],
    ids=["no JSON", "fails", "endless", "none"],
)
async def test_a_helper_that_fails_is_named_and_not_quoted(
    guarded: tuple[RunningRegistry, RegistryTokens],
    config: Path,
    client: HttpClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    code: str,
) -> None:
    """What a helper prints is in no message; one that knows no login counts as no login."""
    registry, _ = guarded
    helper(tmp_path, monkeypatch, "test", script)
    (config / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "test"}}))
    error = await refusal(f"oci://{registry.host}/team/m:v1", client)
    assert error.code == code
    assert code == "unauthorized" or "docker-credential-test" in error.message


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": []}', '{"auths": {"%s": {"auth": "s3cret!"}}}'])
async def test_a_broken_configuration_is_named_and_not_quoted(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient, text: str
) -> None:
    """A config.json that cannot be understood is an error with its path."""
    registry, _ = guarded
    (config / "config.json").write_text(text.replace("%s", registry.host))
    error = await refusal(f"oci://{registry.host}/team/m:v1", client)
    assert error.code == "bad_docker_config" and str(config / "config.json") in error.message


async def test_without_a_login_the_remedy_says_where_one_belongs(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient
) -> None:
    """A token without rights, and a wrong password, are permanent, and lead to no second try."""
    registry, tokens = guarded
    error = await refusal(f"oci://{registry.host}/team/m:v1", client)
    assert isinstance(error, Permanent) and error.code == "unauthorized" and "no login" in error.message
    log_in(config, registry.host, username=USER, password="s3cret")
    before = len(tokens.asked)
    error = await refusal(f"oci://{registry.host}/team/m:v1", client)
    assert isinstance(error, Permanent) and error.code == "unauthorized" and "config.json" in error.remedy
    assert len(tokens.asked) == before + 1


async def test_a_right_that_a_login_lacks_is_final(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient
) -> None:
    """`insufficient_scope` asks for no new token: it would have the same rights."""
    registry, tokens = guarded
    log_in(config, registry.host, auth=BASIC)
    tokens.actions = ("push",)
    before = len(tokens.asked)
    try:
        error = await refusal(f"oci://{registry.host}/team/m:v1", client)
    finally:
        tokens.actions = ("pull", "push", "delete")
    assert isinstance(error, Permanent) and error.code == "forbidden" and "pull" in error.remedy
    assert len(tokens.asked) == before + 1


async def test_a_token_that_does_not_say_lasts_a_minute(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient
) -> None:
    """Without `expires_in` a token counts as valid for 60 s, and the address of a file as well."""
    registry, tokens = guarded
    log_in(config, registry.host, auth=BASIC)
    tokens.says = False
    try:
        source = OciSource(f"oci://{registry.host}/team/m:v1", client)
        target = await source.locate((await source.resolve()).files[0])
    finally:
        tokens.says = True
    assert isinstance(target, HttpTarget) and target.lifetime_s is not None and 50 < target.lifetime_s <= 60


async def test_a_token_server_of_this_machine_may_have_another_of_its_names(
    config: Path, client: HttpClient, tmp_path: Path
) -> None:
    """A registry at 127.0.0.1 may name a token server at localhost: both are this machine."""
    with docker_registry(tmp_path / "r") as before:
        before.put_raw("team/m", "v1", {"w.bin": b"weights"})
    with registry_tokens(tmp_path) as tokens:
        tokens.url = tokens.url.replace("127.0.0.1", "localhost")
        with docker_registry(tmp_path / "r", more=tokens.settings) as registry:
            log_in(config, registry.host, auth=BASIC)
            assert await read_all(f"oci://{registry.host}/team/m:v1", client) == {"w.bin": b"weights"}


async def test_a_refused_token_is_renewed(
    guarded: tuple[RunningRegistry, RegistryTokens], config: Path, client: HttpClient
) -> None:
    """After a refusal the next address has another token; one that no service refused is kept."""
    registry, tokens = guarded
    log_in(config, registry.host, auth=BASIC)
    source = OciSource(f"oci://{registry.host}/team/m:v1", client)
    file = (await source.resolve()).files[0]
    first = await source.locate(file)
    assert isinstance(first, HttpTarget) and first.issuer is not None
    assert (await source.locate(file)).headers == first.headers  # type: ignore[union-attr]
    assert first.issuer.refuse(first.headers)
    second = await source.locate(file)
    assert isinstance(second, HttpTarget) and second.headers != first.headers
    assert tokens.issued[-1] in str(second.headers) and tokens.issued[-1] not in repr(second)


async def test_a_password_file_is_answered_with_basic(tmp_path: Path, config: Path, client: HttpClient) -> None:
    """A registry that asks for Basic gets the login itself; without one it is `unauthorized`."""
    hashed = "$2y$05$HxBAn7ztB9nQJQwDPa2D3uYQPvDSHcqGnT3M0rJ2MZ6BuBnSOFfJW"  # of a made-up password
    (tmp_path / "htpasswd").write_text(f"robot:{hashed}\n")
    more = f'auth: {{htpasswd: {{realm: x, path: "{tmp_path}/htpasswd"}}}}'
    with docker_registry(tmp_path / "r", more=more) as registry:
        uri = f"oci://{registry.host}/team/m:v1"
        assert (await refusal(uri, client)).code == "unauthorized"
        log_in(config, registry.host, username="robot", password="s3cret")
        error = await refusal(uri, client)
        assert isinstance(error, Permanent) and error.code == "unauthorized"


async def test_no_login_leaves_for_another_server(config: Path, client: HttpClient) -> None:
    """A registry on TLS may not name a token server without; a redirect's 401 gets no login at all."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="http://{self.headers["Host"]}/token"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serve_http(Handler) as other:

        class Redirecting(Handler):
            def do_GET(self) -> None:
                self.send_response(307)
                self.send_header("Location", f"http://localhost:{other.rpartition(':')[2]}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()

        with serve_http(Redirecting) as host:
            log_in(config, host, username="robot", password="s3cret")
            error = await refusal(f"oci://{host}/team/m:v1", client)
    assert error.code in ("unauthorized", "insecure_redirect", "forbidden_redirect", "internal_redirect")
    assert not any(seen)


async def test_an_unreachable_registry_is_transient(client: HttpClient) -> None:
    """Nothing listens: the error names the registry, and is tried again."""
    error = await refusal("oci://127.0.0.1:9/team/m:v1", client)
    assert isinstance(error, Transient) and error.code == "connect" and "127.0.0.1:9" in error.message


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("https://registry.acme.test", "registry.acme.test"),
        ("registry.acme.test:5000", "registry.acme.test:5000"),
        ("registry.acme.test/team", "registry.acme.test"),
        ("registry.acme.test/team/m", "registry.acme.test"),
    ],
)
def test_a_registry_is_known_by_all_its_names(config: Path, key: str, host: str) -> None:
    """Docker's hub has a name of its own, and Kubernetes and podman know logins of repositories; the most precise
    counts."""
    entries = {
        key: {"username": "u", "password": "mine"},
        "registry.acme.test/other": {"username": "o", "password": "p"},
    }
    (config / "config.json").write_text(json.dumps({"auths": entries}))
    login = find_docker_login(host, "team/m", Cancellation())
    assert login is not None and login.password == "mine" and "mine" not in repr(login)
    assert find_docker_login("elsewhere.test", "team/m", Cancellation()) is None


def test_a_precise_login_comes_first(config: Path) -> None:
    """Of a login for the registry and one for the repository the latter counts."""
    (config / "config.json").write_text(
        json.dumps(
            {
                "auths": {
                    "registry.acme.test": {"username": "u", "password": "all"},
                    "registry.acme.test/team/m": {"username": "u", "password": "one"},
                }
            }
        )
    )
    found = [find_docker_login("registry.acme.test", name, Cancellation()) for name in ("team/m", "team/n")]
    assert [login.password for login in found if login is not None] == ["one", "all"]
