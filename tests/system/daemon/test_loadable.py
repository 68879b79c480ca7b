"""Versions that no engine loads, copies of the same weights, and one digest for one folder: whole daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files, write_files
from tests.support.fake_hub import FakeHub
from tests.support.publishing import published, tensors

V1 = ModelRef("tiny", "v1")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
TEXTS = {
    "config.json": CONFIG,
    "generation_config.json": b"{}",
    "tokenizer_config.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
}
SHARDS = {"model-00001-of-00002.safetensors": tensors(10), "model-00002-of-00002.safetensors": tensors(20)}
NAMES = list(SHARDS)
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": NAMES[0], "b": NAMES[1]}}).encode()}
MODEL = {**TEXTS, **SHARDS, **INDEX}
FULL_INCLUDE = ["*.safetensors", "*.json", "tokenizer*"]  # as the README had it


def entry(source: Path, **more: Any) -> dict[str, Any]:
    return prefetched(f"file://{source}", **more)


def codes(daemon: DaemonProcess, name: str) -> list[str]:
    return [finding["code"] for finding in (daemon.status(ModelRef(name, "v1")) or {})["findings"]]


BROKEN = {
    "lfs_pointer": {**TEXTS, "model.safetensors": POINTER},
    "web_page": {**TEXTS, "model.safetensors": b"<!doctype html><html>Sign in</html>"},
    "incomplete": {**MODEL, NAMES[1]: tensors(20)[:-1]},
    "no_tokenizer": {"config.json": CONFIG, "model.safetensors": tensors()},
}


def test_what_no_engine_loads_is_told_or_refused(daemon: DaemonProcess, source: Path) -> None:
    """Status, log and `inspect` name the file and the remedy, also after a restart; `require: loadable` fails the
    version, and publishes nothing."""
    for code, files in BROKEN.items():
        write_files(source / code, files)
    refs = [ModelRef(code, "v1") for code in BROKEN]
    daemon.write_catalog({code: entry(source / code) for code in BROKEN})
    daemon.start()
    daemon.wait_ready(*refs)
    for code in BROKEN:
        assert codes(daemon, code) == [code]
        assert f"{code}@v1: may not load: " in daemon.log()
    assert daemon.stop() == 0
    daemon.start()
    daemon.wait_ready(*refs)
    assert [codes(daemon, code) for code in BROKEN] == [[code] for code in BROKEN]
    pull = [sys.executable, "-m", "cached.cli", "pull", "lfs_pointer@v1", "--root", str(daemon.layout.root)]
    pulled = subprocess.run(pull, capture_output=True, text=True, check=True)
    assert "lfs_pointer@v1 may not load: model.safetensors is a pointer of Git LFS" in pulled.stderr
    shown = json.loads(daemon.inspect("lfs_pointer", "--json"))
    assert not shown["loadable"] and [each["code"] for each in shown["findings"]] == ["lfs_pointer"]
    assert f"loadable no\n         {shown['findings'][0]['message']}" in daemon.inspect("lfs_pointer")
    held = daemon.digest(refs[0])
    strict = {code: entry(source / code, require="loadable") for code in BROKEN}
    daemon.write_catalog(strict | {"new": strict["incomplete"]})
    for ref in refs:
        error = daemon.wait_state(ref, "failed")["error"]
        assert (error["code"], error["permanent"], bool(error["remedy"])) == (ref.name, True, True)
    assert daemon.digest(refs[0]) == held
    assert daemon.wait_state(ModelRef("new", "v1"), "failed")
    assert not daemon.path(ModelRef("new", "v1")).is_symlink()


def test_a_shard_that_nobody_has_fails_before_weights_are_fetched(daemon: DaemonProcess, source: Path) -> None:
    """A set of shards with a gap is known from the listing: nothing of it is fetched where it must load."""
    write_files(source, {**TEXTS, NAMES[0]: SHARDS[NAMES[0]]})
    daemon.write_catalog({"tiny": entry(source, require="loadable")})
    daemon.start()
    error = daemon.wait_state(V1, "failed")["error"]
    assert error["code"] == "incomplete" and "expected 2 files, found 1" in error["message"]
    assert not [path for path in daemon.layout.blobs.rglob("*") if path.is_file()]


LOSSES: dict[str, tuple[dict[str, list[str]], set[str]]] = {
    "readme": ({"include": FULL_INCLUDE}, {"filtered_chat_template", "filtered_vocabulary"}),
    "shard": ({"exclude": ["*-00002-of-*"]}, {"filtered_shard"}),
    "config": ({"exclude": ["config.json", "*.index.json"]}, {"filtered_configuration", "filtered_index"}),
    "weights": ({"include": ["*.json", "*.txt", "*.jinja"]}, {"filtered_weights"}),
}


@pytest.mark.parametrize("with_manifest", [True, False])
def test_filters_that_lose_what_an_engine_reads_are_told_before_a_fetch(
    daemon: DaemonProcess, source: Path, with_manifest: bool
) -> None:
    """Files that the source has and the entry's own globs leave out are named; `require: loadable` fetches nothing."""
    (publish_files if with_manifest else write_files)(source, MODEL)
    daemon.write_catalog({name: entry(source, require="loadable", **filters) for name, (filters, _) in LOSSES.items()})
    daemon.start()
    for name in LOSSES:
        error = daemon.wait_state(ModelRef(name, "v1"), "failed")["error"]
        assert error["permanent"] and "the filters leave out" in error["message"] and "`include`" in error["remedy"]
    assert not [path for path in daemon.layout.blobs.rglob("*") if path.is_file()]
    daemon.write_catalog({name: entry(source, **filters) for name, (filters, _) in LOSSES.items()})
    for name, (_, lost) in LOSSES.items():
        daemon.wait_state(ModelRef(name, "v1"), "ready")
        assert lost <= set(codes(daemon, name))


def test_a_preset_picks_what_the_index_names(daemon: DaemonProcess, source: Path) -> None:
    """`for: transformers` reads the index first; what stays out is told with the way to have it; nothing is stale."""
    odd = {"part-a.safetensors": tensors(1), "part-b.safetensors": tensors(2)}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", odd, strict=True))}).encode()}
    copies = {"stray.safetensors": tensors(3), "onnx/model.onnx": b"x", "m-Q4_K_M.gguf": b"GGUF" + bytes(20)}
    write_files(source, {**TEXTS, **odd, **index, **copies})
    daemon.write_catalog({"tiny": entry(source, **{"for": "transformers", "require": "loadable"})})
    daemon.start("--resolve-interval", "0.2s")
    daemon.wait_ready(V1)
    assert set(daemon.files(V1)) == {*TEXTS, *odd, *index}
    left_out = {each["example"] for each in (daemon.status(V1) or {})["left_out"]}
    assert left_out == set(copies)
    assert "tiny@v1: left out: " in daemon.log() and "`for: all`" in daemon.log()
    daemon.write_catalog({"tiny": entry(source, **{"for": "all"})})
    daemon.wait(lambda: len(daemon.files(V1)) == len(TEXTS) + 6, "every copy")
    daemon.write_catalog({"tiny": entry(source, **{"for": "gguf:Q4_K_M"})})
    daemon.wait(lambda: set(daemon.files(V1)) == {*TEXTS, "m-Q4_K_M.gguf"}, "one quantization")
    write_files(source, {"part-a.safetensors": tensors(4)})
    daemon.write_catalog({"tiny": entry(source, follow=True, **{"for": "vllm"})})
    daemon.wait(lambda: daemon.files(V1).get("part-a.safetensors") == tensors(4), "the index's files again")
    daemon.wait(lambda: (daemon.status(V1) or {})["stale"] is None, "nothing stale")


def test_a_pin_of_an_earlier_selection_is_met(daemon: DaemonProcess, source: Path) -> None:
    """A digest that an earlier release computed, of more files than are chosen now, still is what the pin names."""
    files = {**MODEL, "onnx/model.onnx": b"onnx", "trainer_state.json": b"{}"}
    write_files(source, {"pytorch_model.bin": b"x"})
    digest = write_files(source, files).digest
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=digest)})
    daemon.start()
    daemon.wait_ready(V1)
    assert daemon.digest(V1) == digest and set(daemon.files(V1)) == set(files)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest="sha256:" + "0" * 64)})
    assert daemon.wait_state(V1, "failed")["error"]["code"] == "digest_mismatch"


def test_one_folder_has_one_digest_however_it_comes(tmp_path: Path) -> None:
    """Published, fetched as it lies, fetched from a Hub, and published from `hf download --local-dir` of that Hub: the
    same digest, whatever clutter and copies of the weights lie beside the model."""
    clutter = {".git/config": b"[remote]", ".gitattributes": b"x", ".DS_Store": b"x", "._config.json": b"x", "a~": b"x"}
    copies = {"onnx/model.onnx": b"onnx", "pytorch_model.bin": b"x", "consolidated.safetensors": tensors(9)}
    folder, again, files = tmp_path / "folder", tmp_path / "again", {**MODEL, **copies}
    write_files(folder, {**files, **clutter})
    write_files(tmp_path / "hub", {**files, ".gitattributes": b"x"})
    digest = published(folder, tmp_path / "out")["digest"]
    with FakeHub() as hub:
        hub.add("acme/tiny", tmp_path / "hub")
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
        }
        download = [str(Path(sys.executable).with_name("hf")), "download", "acme/tiny", "--local-dir", str(again)]
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        subprocess.run(download, env={**kept, **environment, "HF_HUB_OFFLINE": "0"}, check=True, capture_output=True)
        assert (again / ".cache" / "huggingface").is_dir()
        assert published(again, tmp_path / "out2")["digest"] == digest
        with daemon_process(tmp_path, environment=environment) as daemon:
            sources = {"raw": f"file://{folder}", "hub": "hf://acme/tiny@main", "out": f"file://{tmp_path / 'out'}"}
            daemon.write_catalog({name: prefetched(source) for name, source in sources.items()})
            daemon.start()
            for name in sources:
                daemon.wait_ready(ModelRef(name, "v1"))
                assert str(daemon.digest(ModelRef(name, "v1"))) == digest, name


def test_a_held_version_of_an_earlier_selection_is_not_stale(tmp_path: Path) -> None:
    """A version that is here with the files that an earlier release chose is as the catalog asks for it; a refresh
    takes those that are chosen now."""
    files = {**MODEL, "onnx/model.onnx": b"onnx"}
    digest = write_files(tmp_path / "hub", files).digest
    with FakeHub() as hub:
        hub.add("acme/tiny", tmp_path / "hub")
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        with daemon_process(tmp_path, "--resolve-interval", "0.2s", environment=environment) as daemon:
            daemon.write_catalog({"tiny": prefetched("hf://acme/tiny@main", digest=digest)})
            daemon.start()
            daemon.wait_ready(V1)
            daemon.write_catalog({"tiny": prefetched("hf://acme/tiny@main", follow=True)})
            asked = len(hub.requests)
            daemon.wait(lambda: len(hub.requests) > asked + 5, "several looks at the source")
            assert daemon.digest(V1) == digest
            assert (daemon.status(V1) or {})["stale"] is None
            daemon.control.pull(V1, None, refresh=True)
            daemon.wait(lambda: set(daemon.files(V1)) == set(MODEL), "what is chosen now")
