"""The injector as a process: admission reviews over HTTPS as the API server sends them, and its life."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonpatch
import pytest

from cached.contract.annotations import DIGEST as DIGEST_ANNOTATION
from cached.contract.metrics import injector as table
from tests.support.gates import wait_for
from tests.support.injectors import IMAGE, Injectors, Json, RunningInjector, make_review, operations_of, post
from tests.support.pods import DIGEST, OTHER_DIGEST, gate_of, make_pod
from tests.support.promtool import find_differences


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningInjector]:
    """One injector for all tests that only ask it."""
    made = Injectors(tmp_path_factory.mktemp("injector"))
    yield made.start()
    made.end()


@pytest.fixture
def injectors(tmp_path: Path) -> Iterator[Injectors]:
    made = Injectors(tmp_path)
    yield made
    made.end()


def write_catalog(path: Path, digest: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(f'models: {{acme/tiny: {{versions: {{v1: {{source: "s3://b/", digest: "{digest}"}}}}}}}}')
    temporary.replace(path)


def test_a_pod_is_injected(shared: RunningInjector) -> None:
    """The answer carries the review's uid and a JSON patch that applies and puts the gate first."""
    review = make_review(make_pod())
    response = shared.review(review)
    assert response["uid"] == review["request"]["uid"]
    assert response["allowed"] is True and response["patchType"] == "JSONPatch"
    assert response.keys() == {"uid", "allowed", "patchType", "patch"}
    patched = jsonpatch.JsonPatch(operations_of(response)).apply(review["request"]["object"])
    assert gate_of(patched)["image"] == IMAGE


def test_an_injected_pod_is_left_alone(shared: RunningInjector) -> None:
    """Asked again, about its own work, it changes nothing."""
    pod = make_pod()
    patched = jsonpatch.JsonPatch(operations_of(shared.review(make_review(pod)))).apply(pod)
    review = make_review(patched)
    assert shared.review(review) == {"uid": review["request"]["uid"], "allowed": True}


def test_a_dry_run_gets_the_same_answer(shared: RunningInjector) -> None:
    """Reviews have no side effects, so a dry run is answered as any other."""
    pod = make_pod()
    wet, dry = (operations_of(shared.review(make_review(pod, dryRun=flag))) for flag in (False, True))
    assert wet == dry


@pytest.mark.parametrize(
    "more",
    [
        {"operation": "UPDATE"},
        {"subResource": "ephemeralcontainers"},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
    ],
)
def test_other_requests_are_allowed(shared: RunningInjector, more: Json) -> None:
    """Whatever is not the creation of a pod passes unchanged."""
    review = make_review(make_pod(), **more)
    assert shared.review(review) == {"uid": review["request"]["uid"], "allowed": True}


def test_a_pod_that_asks_for_nothing_is_allowed(shared: RunningInjector) -> None:
    """A pod without our annotations passes unchanged, if it comes here at all."""
    assert "patch" not in shared.review(make_review(make_pod({"a": "b"})))


def test_a_bad_request_is_denied_with_the_remedy(shared: RunningInjector) -> None:
    """A denial says what is wrong and how to write it, and patches nothing."""
    review = make_review(make_pod({"holdfast.dev/model": "acme/tiny"}))
    response = shared.review(review)
    assert response["uid"] == review["request"]["uid"] and response["allowed"] is False
    assert "patch" not in response
    status = response["status"]
    assert (status["code"], status["status"]) == (422, "Failure")
    assert "What to do: write `holdfast.dev/model:" in status["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}',
        json.dumps(make_review(make_pod()) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps(make_review(make_pod()) | {"kind": "Pod"}).encode(),
        json.dumps(make_review({"kind": "Pod"})).encode(),
    ],
)
def test_what_is_no_review_is_an_error(shared: RunningInjector, body: bytes) -> None:
    """A body that is no review of this version is a 400 with a reason, and the connection goes on."""
    with contextlib.closing(shared.reviews()) as connection:
        status, text = post(connection, body)
        assert status == 400 and b"expected an AdmissionReview of admission.k8s.io/v1" in text
        assert post(connection, json.dumps(make_review(make_pod())).encode())[0] == 200


def test_a_large_pod_is_reviewed(shared: RunningInjector) -> None:
    """A pod as large as the API server takes them passes."""
    environment = [{"name": f"A{number}", "value": "x" * 1000} for number in range(1500)]
    pod = make_pod(containers=[{"name": "server", "env": environment}])
    assert operations_of(shared.review(make_review(pod)))


def test_reviews_are_counted(injectors: Injectors) -> None:
    """The metrics tell results, durations and the certificate's end."""
    injector = injectors.start()
    injector.review(make_review(make_pod()))
    injector.review(make_review(make_pod({"holdfast.dev/model": "x"})))
    status, text = injector.ask("/metrics")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert float(samples['holdfast_injector_reviews_total{result="injected"}']) == 1
    assert float(samples['holdfast_injector_reviews_total{result="denied"}']) == 1
    assert float(samples['holdfast_injector_reviews_total{result="invalid"}']) == 0
    assert float(samples["holdfast_injector_review_seconds_count"]) == 2
    assert float(samples["holdfast_injector_certificate_expiry_timestamp_seconds"]) > 1e9
    assert find_differences(text, table.ALL) == set()


def test_the_catalog_is_followed(injectors: Injectors) -> None:
    """A changed catalog gives other pins without a restart, and a broken one leaves the last good in force."""
    catalog = injectors.folder / "catalog.yaml"
    write_catalog(catalog, DIGEST)
    injector = injectors.start("--catalog", str(catalog))
    injector.wait_said("catalog: 1 pinned")
    assert pin_of(injector) == str(DIGEST)
    write_catalog(catalog, OTHER_DIGEST)
    injector.wait_said("catalog: 1 pinned", times=2)
    assert pin_of(injector) == str(OTHER_DIGEST)
    catalog.write_text("models: [")
    injector.wait_said("last good")
    assert pin_of(injector) == str(OTHER_DIGEST)
    assert "holdfast_injector_catalog_unusable 1.0" in injector.ask("/metrics")[1]
    write_catalog(catalog, DIGEST)
    injector.wait_said("catalog: 1 pinned", times=3)
    assert "holdfast_injector_catalog_unusable 0.0" in injector.ask("/metrics")[1]


def pin_of(injector: RunningInjector) -> str:
    pod = make_pod()
    patched = jsonpatch.JsonPatch(operations_of(injector.review(make_review(pod)))).apply(pod)
    pin: str = patched["metadata"]["annotations"][DIGEST_ANNOTATION]
    return pin


def test_a_renewed_certificate_is_served(injectors: Injectors) -> None:
    """A changed certificate is served without a restart, and connections from before go on."""
    injector = injectors.start()
    with contextlib.closing(injector.reviews()) as early:
        body = json.dumps(make_review(make_pod())).encode()
        assert post(early, body)[0] == 200
        injectors.certify()
        injector.wait_said("serving the certificate", times=2)
        assert injector.review(make_review(make_pod()))["allowed"]  # trusts the new authority only
        assert post(early, body)[0] == 200


def test_it_is_not_ready_without_a_certificate(injectors: Injectors) -> None:
    """Until the certificate is there it is healthy and not ready, and says why; then it is ready."""
    folder = injectors.folder / "mounted"
    folder.mkdir()
    injector = injectors.start_bare(
        *("--gate-image", IMAGE, "--cert-dir", str(folder), "--drain", "0"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
    )
    assert injector.ask("/healthz") == (200, "ok\n")
    assert injector.ask("/readyz") == (503, "no certificate yet\n")
    injectors.certify()
    for name in ("tls.crt", "tls.key"):
        (injectors.folder / name).rename(folder / name)
    wait_for(lambda: injector.ask("/readyz") == (200, "ready\n"), "ready")


def test_it_answers_while_it_stops(injectors: Injectors) -> None:
    """After SIGTERM it is not ready, still answers new connections, and then ends with 0."""
    injector = injectors.start("--drain", "3600")
    assert injector.ask("/readyz")[0] == 200
    injector.stop()
    injector.wait_said("stopping")
    assert injector.ask("/readyz") == (503, "stopping\n")
    assert injector.review(make_review(make_pod()))["allowed"]
    injector.process.send_signal(signal.SIGINT)
    assert injector.process.poll() is None


def test_it_ends_with_0(injectors: Injectors) -> None:
    """Asked to stop, it ends by itself and says it is done."""
    injector = injectors.start()
    injector.stop()
    assert injector.wait() == 0


def test_outside_a_cluster_it_says_what_it_needs(injectors: Injectors) -> None:
    """Without a cluster and without --cert-dir it ends with 1 and the way out."""
    injector = injectors.start_bare(
        *("--gate-image", IMAGE, "--namespace", "holdfast"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
    )
    assert injector.wait() == 1
    assert "KUBERNETES_SERVICE_HOST" in injector.said() and "--cert-dir" in injector.said()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "--gate-image"),
        (("--gate-image", "x"), "--namespace or --cert-dir"),
        (("--gate-image", "x", "--cert-dir", "/c", "--gate-memory", "lots"), "quantity"),
        (("--gate-image", "x", "--cert-dir", "/c", "--gate-user", "0"), "from 1"),
        (("--gate-image", "x", "--cert-dir", "/c", "--host-root", "data"), "absolute"),
        (("--gate-image", "x", "--cert-dir", "/c", "--drain", "nan"), "from 0"),
        (("--gate-image", "x", "--cert-dir", "/c", "--startup-deadline", "1.5"), "whole seconds"),
    ],
)
def test_bad_options_are_usage_errors(injectors: Injectors, options: tuple[str, ...], complaint: str) -> None:
    """A missing or bad option ends the process with 2 and names it."""
    injector = injectors.start_bare(*options)
    assert injector.wait() == 2
    assert complaint in injector.said()


def test_an_address_that_is_taken_is_named(shared: RunningInjector, injectors: Injectors) -> None:
    """Where its port is taken it ends with 1 and names the address."""
    port = shared.said().partition("metrics on http://127.0.0.1:")[2].split()[0]
    injector = injectors.start_bare(
        *("--gate-image", IMAGE, "--cert-dir", "/c"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", f"127.0.0.1:{port}"),
    )
    assert injector.wait() == 1
    assert f"127.0.0.1:{port}" in injector.said()


def test_the_clusters_mode_is_an_option(injectors: Injectors) -> None:
    """With `--mode csi` a pod that does not say a mode gets a volume of the driver and no container."""
    injector = injectors.start("--mode", "csi")
    pod = make_pod()
    patched = jsonpatch.JsonPatch(operations_of(injector.review(make_review(pod)))).apply(pod)
    assert [volume["csi"]["driver"] for volume in patched["spec"]["volumes"]] == ["weights.holdfast.dev"]
    assert "initContainers" not in patched["spec"]


def test_auto_needs_a_cluster(injectors: Injectors) -> None:
    """`--mode auto` asks the cluster which nodes have the driver: outside of one the injector ends with 1 and the
    reason."""
    injectors.certify()
    injector = injectors.start_bare("--gate-image", IMAGE, "--cert-dir", str(injectors.folder), "--mode", "auto")
    assert injector.wait() == 1
    assert "--mode auto" in injector.said() and "KUBERNETES_SERVICE_HOST" in injector.said()


def test_namespaces_of_the_catalog_are_kept(injectors: Injectors, tmp_path: Path) -> None:
    """A pod is refused where the catalog gives its model to other namespaces than the review's."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("models: {acme/tiny: {source: 's3://b/{version}', namespaces: [team-a]}}")
    injector = injectors.start("--catalog", str(catalog))
    injector.wait_said("catalog: ")
    refused = injector.review(make_review(make_pod(), namespace="team-b"))
    assert refused["allowed"] is False
    assert "team-a" in refused["status"]["message"] and "team-b" in refused["status"]["message"]
    assert injector.review(make_review(make_pod(), namespace="team-a"))["allowed"] is True
