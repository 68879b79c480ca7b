"""`holdfast doctor`: what it finds about a root, a catalog's sources and a cluster, and its exit code."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cached.contract.annotations import weights_label
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.doctor import cluster, command, gpu
from cached.store.start import recovery
from tests.support.certificates import make_certificates
from tests.support.control import ControlServer, model_status, serve_control, write_heartbeat
from tests.support.daemon import publish_files
from tests.support.fake_api import FakeApi
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Status
from tests.support.users import hidden_from_others
from tests.unit.cached.commands.conftest import publish


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A root as a daemon's start leaves it."""
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    return layout


@pytest.fixture
def control(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    """A daemon that answers, with a fresh heartbeat."""
    monkeypatch.chdir(layout.private)
    write_heartbeat(layout, time.time())
    with serve_control(layout) as control:
        control.answers["GET /v1/status"] = 200, {"daemon": {}, "disk": {"error": None}, "models": []}
        yield control


def examine(layout: Layout, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """The exit code and the findings; every one that is not ok has a remedy, unless it was not made."""
    code = command.main(["--root", str(layout.root), "--json", "--timeout", "20", *arguments])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    found: list[dict[str, str]] = document["findings"]
    assert document["failed"] is (code == 1)
    assert all(each["remedy"] for each in found if each["verdict"] in ("warning", "failed"))
    return code, found


def of(found: list[dict[str, str]], area: str) -> list[tuple[str, str]]:
    return [(each["verdict"], each["message"]) for each in found if each["area"] == area]


def kubeconfig(folder: Path, api: FakeApi) -> Path:
    """A kubeconfig of this API, without credentials."""
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return folder / "kubeconfig"


def test_a_node_in_order_passes(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """File system and daemon are ok; what does not apply is skipped, and the exit code is 0. The disk is this
    machine's, and may be nearly full."""
    code, found = examine(layout, capsys, "--kube", "off")
    assert code == 0
    assert [verdict for area in ("file system", "daemon") for verdict, _ in of(found, area)] == ["ok"] * 2
    assert [verdict in ("ok", "warning") for verdict, _ in of(found, "disk")] == [True]
    assert of(found, "catalog")[0][0] == of(found, "kubernetes")[0][0] == "skipped"
    assert control.asked == [("GET /v1/status", None)]
    assert not [path for path in layout.root.rglob("*") if path.name.startswith(".tmp-")]


def test_what_is_wrong_with_root_and_daemon_is_said(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A root that is not there, a daemon that never ran, one that stopped, its disk's error, and failed versions are
    named, each with what to do."""
    assert of(examine(Layout(layout.root / "none"), capsys)[1], "disk")[0][0] == "failed"
    status = model_status(ModelRef("m", "1"), State.FAILED, error=StatusError("x", "m@1: no luck", "try luck", True))
    disk = {"error": {"code": "disk", "message": "read-only", "remedy": "remount", "permanent": False}}
    control.answers["GET /v1/status"] = 200, {"daemon": {}, "disk": disk, "models": [status.document()]}
    code, found = examine(layout, capsys)
    assert code == 1
    assert ("failed", "its disk: read-only") in of(found, "daemon")
    assert ("warning", "m@1 failed: no luck") in of(found, "daemon")
    write_heartbeat(layout, time.time() - 100)
    code, found = examine(layout, capsys)
    assert code == 1
    assert "last heartbeat was 1m" in of(found, "daemon")[0][1]
    layout.public.daemon_status.unlink()
    assert "none ever ran" in of(examine(layout, capsys)[1], "daemon")[0][1]


def test_each_origin_is_listed_once_and_no_file_is_fetched(
    layout: Layout, control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each origin one version is listed: reached or not, allowed or not. Entries that the catalog rejects, and
    schemes that there are not, are told. No file's bytes are asked for, and no credentials are shown."""
    assert control.answers
    publish_files(tmp_path / "here", {"w.bin": b"w" * 100})
    with HostileOrigin(host="127.0.0.1") as origin:
        manifest = publish_files(tmp_path / "there", {"w.bin": b"w" * 100}).canonical()
        origin.put("/one/holdfast.json", manifest)
        catalog = tmp_path / "catalog.yaml"
        secret = origin.url("/one/").replace("://", "://user:sesame@")
        entries = {
            "web": {"versions": {"1": {"source": secret}, "2": {"source": origin.url("/two/")}}},
            "folder": {"versions": {"1": {"source": f"file://{tmp_path}/here"}}},
            "gone": {"versions": {"1": {"source": "http://127.0.0.1:9/x/"}}},
            "typo": {"versions": {"1": {"source": "gcs://b/x"}}},
            "bad": {"versions": {"1": {"sauce": "x"}}},
        }
        catalog.write_text(json.dumps({"models": entries}))
        code, found = examine(layout, capsys, "--kube", "off", "--catalog", str(catalog))
        asked = [request.path for request in origin.requests]
    assert code == 1
    sources = of(found, "source")
    verdicts = {message.split()[0].rstrip(":"): verdict for verdict, message in sources}
    assert verdicts == {
        "typo@1": "failed",
        f"file://{tmp_path}/here": "ok",
        "http://127.0.0.1:9/x/": "failed",
        origin.url("/one/"): "ok",
    }
    assert any("one of 2 versions there" in message for _, message in sources)
    assert "sauce" in of(found, "catalog")[0][1]
    assert not [path for path in asked if path.endswith("w.bin")]
    assert "sesame" not in json.dumps(found)


def test_a_version_that_is_not_published_is_no_fault_of_its_origin(
    layout: Layout, control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where an origin answers and has not got the first version of the catalog, another one tells that it is in order;
    where it has none of them that is a warning, and an origin that does not answer or refuses fails."""
    assert control.answers
    with HostileOrigin(host="127.0.0.1") as origin, HostileOrigin(host="localhost") as closed:
        manifest = publish_files(tmp_path / "there", {"w.bin": b"w" * 100}).canonical()
        origin.put("/m/2/holdfast.json", manifest)
        closed.always("/n/1/holdfast.json", Status(401))
        closed.always("/n/1/", Status(401))
        catalog = tmp_path / "catalog.yaml"

        def sources(*versions: str) -> list[tuple[str, str]]:
            listed = {version: {"source": origin.url(f"/m/{version}/")} for version in versions}
            models = {"m": {"versions": listed}, "n": {"versions": {"1": {"source": closed.url("/n/1/")}}}}
            catalog.write_text(json.dumps({"models": models}))
            code, found = examine(layout, capsys, "--kube", "off", "--catalog", str(catalog))
            assert code == 1  # the other origin's refusal
            return of(found, "source")

        first, second = sources("1", "2")
        assert first == (
            "ok",
            f"{origin.url('/m/2/')} (m@2, one of 2 versions there): 1 file, published with a manifest",
        )
        assert second[0] == "failed"
        first, _ = sources("1", "3")
        assert first[0] == "warning"
        assert first[1].startswith(
            f"{origin.url('/m/1/')} (m@1, one of 2 versions there): its origin answers, but has not"
        )


def test_a_dragonfly_that_is_down_is_a_warning(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon's own variable names what is looked at: where nothing answers origins are asked, which a person should
    know. Without it nothing is said."""
    assert not of(examine(layout, capsys, "--kube", "off")[1], "dragonfly")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        monkeypatch.setenv("HOLDFAST_ORIGIN_PROXY", f"dragonfly=http://127.0.0.1:{port}")
        ((verdict, _),) = of(examine(layout, capsys, "--kube", "off")[1], "dragonfly")
        assert verdict == "ok"
    ((verdict, message),) = of(examine(layout, capsys, "--kube", "off")[1], "dragonfly")
    assert (verdict, "Connection refused" in message) == ("warning", True)


def test_a_root_of_another_user_is_told_as_that(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Where this user may not look into the root, the daemon is not said to have never run: the user to be is."""
    with hidden_from_others(layout.root):
        code, found = examine(layout, capsys, "--kube", "off")
    assert code == 1
    (told,) = [each for each in found if each["area"] == "daemon"]
    assert "Permission denied" in told["message"]
    assert "daemon's user" in told["remedy"]


@pytest.mark.parametrize("columns", [30, 40, 71])
def test_lines_fit_a_narrow_terminal(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    """On a narrow terminal no line is longer than it, but for words that are: a path must stay whole."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    command.main(["--root", str(layout.root), "--kube", "off"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert not [line for line in lines if len(line) > columns and len(line.split()) > 1]


# --- GPUs ----------------------------------------------------------------------------------------------------------


class Machine:
    """A tree as /sys and /proc have it on a machine with GPUs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices = folder / "devices"
        self.devices.mkdir()
        self._drivers = folder / "drivers"
        self._nvidia, self._amd = folder / "nvidia-version", folder / "amdgpu-version"
        monkeypatch.setattr(gpu, "_PCI", self.devices)
        monkeypatch.setattr(gpu, "_NVIDIA_VERSION", self._nvidia)
        monkeypatch.setattr(gpu, "_AMD_VERSION", self._amd)

    def add(self, vendor: str, kind: str, driver: str | None) -> None:
        """Add a device on the PCI bus, bound to a driver or to none."""
        device = self.devices / f"0000:{len(list(self.devices.iterdir())):02x}:00.0"
        device.mkdir()
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
        if driver is not None:
            (self._drivers / driver).mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(self._drivers / driver)

    def load(self, nvidia: str = "", amd: str = "") -> None:
        """Write what the kernel modules say of themselves."""
        if nvidia:
            self._nvidia.write_text(
                f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {nvidia}  Tue Mar  1\nGCC version:\n"
            )
        if amd:
            self._amd.write_text(f"{amd}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
DISPLAY, ACCELERATOR, NETWORK = "0x030200", "0x120000", "0x020000"


def test_gpus_and_their_driver_are_told(machine: Machine) -> None:
    """GPUs are told by vendor with the version of their driver; other devices, and a vendor's other functions, are
    none."""
    for _ in range(8):
        machine.add(NVIDIA, DISPLAY, "nvidia")
    machine.add(NVIDIA, NETWORK, "mlx5_core")
    machine.add(INTEL, DISPLAY, "i915")
    machine.add(AMD, ACCELERATOR, "amdgpu")
    machine.load(nvidia="550.54.15", amd="6.7.0")
    found = [(each.verdict, each.message) for each in gpu.check_gpus()]
    assert found[:2] == [("ok", "1 AMD GPU, driver 6.7.0"), ("ok", "8 NVIDIA GPUs, driver 550.54.15")]
    assert len(found) == 3  # the library


@pytest.mark.parametrize(
    ("drivers", "verdict", "says"),
    [
        (["nvidia", None], "failed", "2 NVIDIA GPUs, 1 without its driver (found none)"),
        (["nouveau", "nouveau"], "failed", "2 without its driver (found nouveau)"),
        (["vfio-pci", "nvidia"], "warning", "2 NVIDIA GPUs, 1 bound to vfio-pci"),
        (["nvidia"], "ok", "1 NVIDIA GPU, driver of unknown version"),
    ],
)
def test_a_gpu_without_its_driver_is_told(machine: Machine, drivers: list[str | None], verdict: str, says: str) -> None:
    """A GPU without the vendor's driver fails; one that is given to virtual machines is a warning."""
    for driver in drivers:
        machine.add(NVIDIA, DISPLAY, driver)
    first = next(iter(gpu.check_gpus()))
    assert first.verdict == verdict
    assert says in first.message


def test_a_machine_without_gpus_is_no_fault(machine: Machine) -> None:
    """Without a GPU, and without a PCI bus, the check is skipped."""
    assert [each.verdict for each in gpu.check_gpus()] == ["skipped"]
    machine.devices.rmdir()
    assert [each.verdict for each in gpu.check_gpus()] == ["skipped"]


_NVML = """
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 8; return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 18 ? "Driver/library version mismatch" : "other"; }
"""


@pytest.mark.parametrize(
    ("code", "verdict", "says"),
    [(0, "ok", "the driver answers: 8 usable here"), (18, "failed", "Driver/library version mismatch")],
)
def test_the_drivers_library_is_asked(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, verdict: str, says: str
) -> None:
    """Where the driver's library is, it says how many GPUs this process may use, or why the driver does not answer: as
    after an upgrade without a restart."""
    machine.add(NVIDIA, DISPLAY, "nvidia")
    made = tmp_path / "libnvidia-ml.so.1"
    compiled = ["cc", "-shared", "-fPIC", "-x", "c", f"-DINIT={code}", "-o", str(made), "-"]
    subprocess.run(compiled, input=_NVML, text=True, check=True)
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: load(str(made) if name == made.name else name))
    last = list(gpu.check_gpus())[-1]
    assert (last.verdict, says in last.message) == (verdict, True)


# --- the cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "verdict", "says"),
    [(90, "ok", "lasts 90 days"), (5, "warning", "ends in 5 days"), (-1, "failed", "has expired")],
)
async def test_the_injectors_certificate_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, verdict: str, says: str
) -> None:
    """The end of the certificate that the injector's service shows is told: soon, or past. Nothing is sent to it."""
    certificates = make_certificates(tmp_path, host="holdfast-injector.serving.svc", days=days)
    find = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        return find("127.0.0.1" if host == "holdfast-injector.serving.svc" else host, *rest, **more)

    with HostileOrigin(tls=certificates.server_context()) as injector:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(cluster, "_PORT", injector.port)
        found = await cluster._check_injector("serving", 20.0)
        assert not injector.requests
    assert (found.area, found.verdict) == ("webhook", verdict)
    assert says in found.message


async def test_an_injector_that_does_not_answer_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that refuses the connection, as behind a network policy, is skipped with what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setattr(cluster, "_PORT", port)
    monkeypatch.setattr(socket, "create_connection", lambda *_: _refuse(port))
    found = await cluster._check_injector("serving", 20.0)
    assert found.verdict == "skipped"
    assert "network policy" in found.remedy


def _refuse(port: int) -> NoReturn:
    raise ConnectionRefusedError(111, f"Connection refused by {port}")


def test_the_cluster_says_what_the_daemon_may_and_what_the_node_is_labelled(
    layout: Layout,
    control: ControlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A right that is missing, a snapshot without its label, a label without its snapshot and a webhook without a
    certificate are told; an API that does not answer is one finding."""
    assert control.answers
    digest = publish(layout, ModelRef("m", "1"), {"w": b"w"})
    other = Digest("f" * 64)
    with FakeApi() as api:
        labels = {weights_label(other): "ready"}
        api.create("/api/v1/nodes", {"metadata": {"name": "node1", "labels": labels}})
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api)))
        for number in range(7):
            api.answer("POST", "selfsubjectaccessreviews", {"status": {"allowed": number != 0}})
        api.answer("GET", "mutatingwebhook", {"webhooks": [{"clientConfig": {}}]})
        code, found = examine(layout, capsys, "--node", "node1")
        assert code == 1
        assert len([m for _, m in of(found, "node object") if "no label" in m or other.hex[:40] in m]) == 2
        (rights,) = of(found, "rights")
        assert rights[0] == "failed"
        assert rights[1].startswith("the service account may not ")
        assert of(found, "webhook") == [("failed", "its configuration has no caBundle")]

        labelled = {weights_label(other): None, weights_label(digest): "ready"}
        api.patch("/api/v1/nodes/node1", {"metadata": {"labels": labelled}})
        for _ in range(7):
            api.answer("POST", "selfsubjectaccessreviews", {"status": {"allowed": True}})
        api.refuse("GET", "mutatingwebhook", 403)
        code, found = examine(layout, capsys, "--node", "node1")
        assert (code, of(found, "rights")[0][0], of(found, "node object")[0][0]) == (0, "ok", "ok")
        assert of(found, "webhook")[0][0] == "skipped"
        missing = of(examine(layout, capsys, "--node", "node2")[1], "node object")
        assert missing[0][0] == "failed"
    found = examine(layout, capsys, "--node", "node1")[1]
    assert any("no answer from" in message for _, message in of(found, "node object"))


def test_the_injector_is_looked_for_where_holdfast_is_installed(
    layout: Layout,
    control: ControlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a pod the injector's service is that of the pod's own namespace, which the chart lets a person choose."""
    assert control.answers

    def resolve(host: str, *_: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, f"no {host}")

    (tmp_path / "namespace").write_text("serving\n")
    monkeypatch.setattr(cluster, "_NAMESPACE", tmp_path / "namespace")
    with FakeApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api)))
        api.create("/api/v1/nodes", {"metadata": {"name": "node1"}})
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        _, found = examine(layout, capsys, "--node", "node1")
    (told,) = [each for each in found if "holdfast-injector.serving.svc" in each["message"]]
    assert told["verdict"] == "skipped"
    assert "kubectl -n serving get service holdfast-injector" in told["remedy"]


def test_many_places_are_not_all_looked_at(
    layout: Layout, control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repositories are places of their own, as their rights may differ; of more than 64 the others are told by their
    number. A version that only a prefetch rule names is one too."""
    assert control.answers
    publish_files(tmp_path / "m" / "1", {"w.bin": b"w"})
    entries: dict[str, Any] = {
        f"m{number}": {"versions": {"1": {"source": f"file://{tmp_path}/{number}"}}} for number in range(70)
    }
    entries = {"m": {"source": f"file://{tmp_path}/{{name}}/{{version}}", "prefetch": {"versions": ["1"]}}, **entries}
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(json.dumps({"models": entries}))
    found = of(examine(layout, capsys, "--kube", "off", "--catalog", str(catalog))[1], "source")
    assert found[0] == ("ok", f"file://{tmp_path}/m/1 (m@1): 1 file, published with a manifest")
    assert [verdict for verdict, _ in found] == ["ok", *["warning"] * 63, "skipped"]
    assert found[-1][1] == "7 more places are not looked at"
