"""TLS and redirects, through the daemon: whom it believes, and what it tells to whom."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cached.contract.reference import ModelRef
from tests.support.certificates import Certificates, make_certificates
from tests.support.daemon import DaemonProcess, daemon_process, model
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Headers, Redirect, Status
from tests.support.stages import HUB_TOKEN, SESSION_TOKEN, WEB_PASSWORD, Stages, manifest_of, open_stages

V1 = "v1"


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> dict[str, ssl.SSLContext]:
    """Certificates that no client should believe, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("untrusted")
    made = {}
    for kind, host, days in (
        ("wrong-name", "elsewhere.example", 1),
        ("expired", "localhost", -1),
        ("unknown", "localhost", 1),
    ):
        (folder / kind).mkdir()
        issued = make_certificates(folder / kind, host, days=days)
        made[kind] = issued.server_context()
        if kind != "unknown":  # wrong in nothing else
            with certificates.authority.open("ab") as trusted:
                trusted.write(issued.authority.read_bytes())
    return {**made, "self-signed": _self_signed(folder)}


@pytest.fixture
def stages(tmp_path: Path, certificates: Certificates) -> Iterator[Stages]:
    with open_stages(tmp_path, certificates) as opened:
        yield opened


@pytest.fixture
def daemon(tmp_path: Path, stages: Stages) -> Iterator[DaemonProcess]:
    with daemon_process(
        tmp_path / "node", "--scrub-rate", "0", "--stall-timeout", "3", environment=stages.environment
    ) as process:
        yield process


def test_a_certificate_that_cannot_be_believed_ends_it(
    daemon: DaemonProcess, stages: Stages, contexts: dict[str, ssl.SSLContext]
) -> None:
    """A wrong name, an expired, a self-signed or an unknown certificate is permanent, at every source, and counted."""
    catalog = {}
    with ExitStack() as stack:
        for kind, context in contexts.items():
            server = stack.enter_context(HostileOrigin(tls=context))
            endpoint = server.url("")
            catalog[f"http-{kind}"] = model(f"{endpoint}/m/")
            catalog[f"s3-{kind}"] = model(f"s3://bucket/m/?endpoint_url={endpoint}")
            hub = stages.stage("hf", f"hf-{kind}")
            hub.places["locate"].always(Headers({"Location": f"{endpoint}/x"}))
            catalog[f"hf-{kind}"] = model(hub.uri)
        daemon.write_catalog(catalog)
        daemon.start()
        for name in catalog:
            daemon.pull(f"{name}@v1")
        for name in catalog:
            error = daemon.wait_state(ModelRef(name, V1), "failed")["error"]
            assert (error["code"], error["permanent"]) == ("tls_verification", True), (name, error)
            assert "CERT" in error["remedy"] or "CA_BUNDLE" in error["remedy"]
    for source in ("http", "s3", "hf"):
        assert daemon.metric("holdfast_fetch_errors_total", source=source, reason="tls_verification") >= len(contexts)


def test_a_redirect_away_takes_no_credentials_along(daemon: DaemonProcess, stages: Stages) -> None:
    """Where any request is redirected to another host, that host sees no password, token or signature of ours."""
    with HostileOrigin(tls=None, host="127.0.0.1") as elsewhere:
        catalog = {}
        for source in ("http", "s3"):
            staged = stages.stage(source, f"{source}-away")
            for place, path in staged.places.items():
                at = elsewhere.put(f"/{source}/{place}", _content_of(staged.files, place), etag='"e"')
                if (source, place) != ("s3", "manifest"):
                    path.always(Redirect(at))
            catalog[f"{source}-away"] = model(staged.uri)
        daemon.write_catalog(catalog)
        daemon.start()
        for name in catalog:
            daemon.pull(f"{name}@v1")
        daemon.wait_ready(ModelRef("http-away", V1))
        daemon.wait_state(
            ModelRef("s3-away", V1), "failed"
        )  # an S3 server that sends its listing's reader away is none
        seen = "\n".join(f"{request.path} {sorted(request.headers.items())}" for request in elsewhere.requests)
    assert elsewhere.requests
    assert not [s for s in (WEB_PASSWORD, SESSION_TOKEN, "authorization", "Signature", "x-amz") if s in seen], seen


def test_tls_is_never_left_for_plain_http(daemon: DaemonProcess, stages: Stages, certificates: Certificates) -> None:
    """A redirect from https to http is refused at every source, before anything is asked there."""
    with HostileOrigin(tls=certificates.server_context()) as secure, HostileOrigin(host="127.0.0.1") as plain:
        plain.put("/x", b"{}")
        secure.always("/m/holdfast.json", Redirect(plain.url("/x")))
        secure.always("/bucket/m/holdfast.json", Redirect(plain.url("/x"), 307))
        catalog = {
            "http-down": model(secure.url("/m/")),
            "s3-down": model(f"s3://bucket/m/?endpoint_url={secure.url('')}"),
        }
        for place in ("revision", "listing", "locate", "bytes"):
            staged = stages.stage("hf", f"hf-{place}")
            staged.places[place].always(Redirect(plain.url("/x")))
            catalog[f"hf-{place}"] = model(staged.uri)
        daemon.write_catalog(catalog)
        daemon.start()
        for name in catalog:
            daemon.pull(f"{name}@v1")
        for name in catalog:
            error = daemon.wait_state(ModelRef(name, V1), "failed")["error"]
            assert error["permanent"], (name, error)
            if name != "s3-down":
                assert error["code"] in ("insecure_redirect", "bad_response"), (name, error)
        assert plain.requests == []
    assert HUB_TOKEN not in daemon.log()


def test_an_echo_of_a_secret_is_not_passed_on(daemon: DaemonProcess, stages: Stages) -> None:
    """A server that writes our own credentials into its error makes us write them nowhere."""
    hub = stages.stage("hf", "hf-echo")
    hub.places["revision"].always(Status(403, {"X-Error-Message": f"no: Bearer {HUB_TOKEN}"}, b"{}"))
    bucket = stages.stage("s3", "s3-echo")
    echo = f"<Error><Code>AccessDenied</Code><Message>no: {SESSION_TOKEN}</Message></Error>".encode()
    bucket.places["manifest"].always(Status(403, {"Content-Type": "application/xml"}, echo))
    web = stages.stage("http", "http-echo")
    web.places["listing"].always(Status(401, {"WWW-Authenticate": f"Basic {WEB_PASSWORD}"}, WEB_PASSWORD.encode()))
    catalog = {"hf-echo": model(hub.uri), "s3-echo": model(bucket.uri), "http-echo": model(web.uri)}
    daemon.write_catalog(catalog)
    daemon.start()
    for name in catalog:
        daemon.pull(f"{name}@v1")
        daemon.wait_state(ModelRef(name, V1), "failed")
    said = daemon.log() + daemon.get("/v1/status")[1] + daemon.get("/metrics")[1] + daemon.get("/")[1]
    assert not [secret for secret in (HUB_TOKEN, SESSION_TOKEN, WEB_PASSWORD) if secret in said]


def _content_of(files: dict[str, bytes], place: str) -> bytes:
    return next(iter(files.values())) if place == "bytes" else manifest_of(files)


def _self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "self-signed.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
