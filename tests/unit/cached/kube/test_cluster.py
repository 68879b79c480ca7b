"""Where the API server is: the pod's service account, or a KUBECONFIG file."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from cached.contract.errors import Permanent, Transient
from cached.kube.client import Call, KubeClient
from cached.kube.cluster import ApiServer, in_cluster
from cached.kube.kubeconfig import find_cluster, load
from tests.support.certificates import Certificates, make_certificates
from tests.support.fake_api import FakeApi


class Asking(Certificates):
    """For a server that lets no client in without a client certificate."""

    def server_context(self) -> ssl.SSLContext:
        context = super().server_context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        return context


def write(file: Path, cluster: dict[str, Any], user: dict[str, Any], **more: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        **more,
    }
    file.write_text(yaml.safe_dump(document))
    return file


def test_outside_of_a_cluster_there_is_none() -> None:
    """Without KUBECONFIG and service there is no cluster, whatever lies in the home folder."""
    assert find_cluster({}) is None


def test_inside_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    """The service's address and the mounted token make a cluster; an IPv6 address is bracketed."""
    (tmp_path / "token").write_text("secret\n")
    cluster = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert cluster is not None
    assert cluster.server == "https://[fd00::1]:6443"
    assert cluster.read_token() == "secret"
    (tmp_path / "token").write_text("rotated")
    assert cluster.read_token() == "rotated"


def test_a_missing_token_is_waited_for(tmp_path: Path) -> None:
    """A token that is not there yet is trouble, not the end."""
    with pytest.raises(Transient) as error:
        ApiServer("https://x", token=tmp_path / "token").read_token()
    assert error.value.code == "kube_no_token"


def test_credentials_never_show(tmp_path: Path) -> None:
    """A cluster that is logged shows neither token nor key."""
    assert "hidden" not in repr(ApiServer("https://x", token="hidden", key=b"hidden", certificate=b"hidden"))


async def test_kubeconfig_with_files_beside_it(tmp_path: Path) -> None:
    """Relative paths are relative to the file; the authority in it is the one trusted."""
    certificates = make_certificates(tmp_path)
    with FakeApi(certificates, tokens={"t1"}) as api:
        api.create("/api/v1/nodes", {"metadata": {"name": "n"}})
        (tmp_path / "tok").write_text("t1")
        file = write(
            tmp_path / "config", {"server": api.url, "certificate-authority": "authority.pem"}, {"tokenFile": "tok"}
        )
        cluster = find_cluster({"KUBECONFIG": str(file)})
        assert cluster is not None
        async with KubeClient(cluster) as client:
            node = await client.request(Call("GET", "/api/v1/nodes/n"))
        assert node["metadata"]["name"] == "n"


def test_kubeconfig_with_data(tmp_path: Path) -> None:
    """Certificates and keys may be written into the file; no copy of the key is left on a disk."""
    made = make_certificates(tmp_path)
    encoded = {
        name: base64.b64encode(getattr(made, name).read_bytes()).decode()
        for name in ("authority", "certificate", "key")
    }
    file = write(
        tmp_path / "config",
        {
            "server": "https://x:6443/",
            "certificate-authority-data": encoded["authority"],
            "tls-server-name": "localhost",
        },
        {"client-certificate-data": encoded["certificate"], "client-key-data": encoded["key"]},
    )
    before = set(tmp_path.iterdir())
    cluster = load([file])
    assert (cluster.server, cluster.server_name) == ("https://x:6443", "localhost")
    context = cluster.tls()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert set(tmp_path.iterdir()) == before


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    """A server that asks for a client certificate gets ours."""
    made = make_certificates(tmp_path)
    with FakeApi(Asking(made.authority, made.certificate, made.key)) as api:
        api.create("/api/v1/nodes", {"metadata": {"name": "n"}})
        cluster = ApiServer(api.url, authority=made.authority, certificate=made.certificate, key=made.key)
        async with KubeClient(cluster) as client:
            assert await client.request(Call("GET", "/api/v1/nodes/n"))
        async with KubeClient(ApiServer(api.url, authority=made.authority)) as client:
            with pytest.raises(Transient):
                await client.request(Call("GET", "/api/v1/nodes/n"))


def test_insecure_skip_tls_verify(tmp_path: Path) -> None:
    """Verification is off only where the file says so."""
    cluster = load([write(tmp_path / "config", {"server": "https://x", "insecure-skip-tls-verify": True}, {})])
    context = cluster.tls()
    assert context is not None
    assert context.verify_mode == ssl.CERT_NONE


def test_of_several_files_the_first_wins(tmp_path: Path) -> None:
    """KUBECONFIG may list files: names are taken from the first that has them."""
    first = write(tmp_path / "1", {"server": "https://one"}, {"token": "1"}, **{"current-context": ""})
    second = write(tmp_path / "2", {"server": "https://two"}, {"token": "2"})
    cluster = load([first, second])
    assert (cluster.server, cluster.token) == ("https://one", "1")


@pytest.mark.parametrize(
    ("cluster", "user", "more", "says"),
    [
        ({"server": "https://x"}, {"exec": {"command": "aws"}}, {}, "exec"),
        ({"server": "https://x"}, {"auth-provider": {"name": "gcp"}}, {}, "auth-provider"),
        ({"server": "https://x", "proxy-url": "http://p"}, {}, {}, "proxy-url"),
        ({}, {}, {}, "no server"),
        ({"server": "https://x", "certificate-authority-data": "!"}, {}, {}, "base64"),
        ({"server": "https://x"}, {}, {"current-context": "else"}, "'else' is not among its contexts"),
        ({"server": "https://x"}, {}, {"current-context": ""}, "no current-context"),
        ({"server": "https://x"}, {}, {"users": ["x"]}, "not a kubeconfig"),
    ],
)
def test_a_kubeconfig_that_cannot_serve_is_refused(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    """What Holdfast does not do in a kubeconfig is refused with the reason and a remedy, plugins above all."""
    with pytest.raises(Permanent) as refused:
        load([write(tmp_path / "config", cluster, user, **more)])
    assert refused.value.code == "kube_bad_kubeconfig"
    assert says in str(refused.value)


@pytest.mark.parametrize("text", ["{", "- a\n- b", "clusters: 1"])
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever is in the file, the outcome is a refusal that names the file."""
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(Permanent, match="config"):
        load([file])


def test_bad_certificates_are_refused(tmp_path: Path) -> None:
    """An authority that is no PEM, or not there, is said at the start."""
    for authority in (b"nonsense", tmp_path / "missing"):
        with pytest.raises(Permanent) as refused:
            ApiServer("https://x", authority=authority).tls()
        assert refused.value.code == "kube_bad_credentials"
