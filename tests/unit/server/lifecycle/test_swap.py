from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import is_held
from cached.contract.status import State
from tests.support.lora import llama_adapter
from tests.support.serving import ServerProcess, eventually, running
from tests.support.snapshots import link_model, make_public, write_heartbeat, write_status
from tests.support.versions import add_snapshot, add_version, with_other_weights

PROMPT = "hold fast"
TOKENS = 24


@pytest.fixture(scope="session")
def other_llama(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with other weights."""
    return with_other_weights(llama, tmp_path_factory.mktemp("other") / "llama")


@pytest.fixture
def public(tmp_path: Path) -> PublicLayout:
    return make_public(tmp_path / "public")


def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(asked: openai.OpenAI, model: str) -> str:
    """A greedy answer that came whole."""
    (choice,) = asked.completions.create(model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0).choices
    assert choice.finish_reason in ("length", "stop")
    return choice.text


def models(server: ServerProcess) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in json.loads(server.get("/v1/models")[1])["data"]}


@contextmanager
def asking(server: ServerProcess, *names: str) -> Iterator[dict[str, list[str]]]:
    """Ask each model without a pause while the block runs, streamed and whole; gives the answers by model, in order."""
    answers: dict[str, list[str]] = {name: [] for name in names}
    stop = threading.Event()

    def whole(name: str) -> None:
        with client(server) as asked:
            while not stop.is_set():
                answers[name].append(ask(asked, name))

    def streamed(name: str) -> None:
        with client(server) as asked:
            while not stop.is_set():
                chunks = list(
                    asked.completions.create(model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True)
                )
                assert chunks[-1].choices[0].finish_reason is not None
                answers[name].append("".join(chunk.choices[0].text for chunk in chunks))

    with ThreadPoolExecutor(2 * len(names)) as pool:
        futures = [pool.submit(act, name) for name in names for act in (whole, streamed)]
        try:
            yield answers
        finally:
            stop.set()
        for future in futures:
            future.result()


def coming(server: ServerProcess, name: str) -> tuple[str, str]:
    """The state of the version that is to replace a model, and its error."""
    found = models(server)[name]["next"] or {}
    return found.get("state", ""), found.get("error") or ""


def test_a_version_is_swapped_under_load(llama: Path, other_llama: Path, public: PublicLayout, tmp_path: Path) -> None:
    """While a symlink is moved no request fails, and each answer is the one version's or the other's, whole, with its
    adapter's too; then the digest is the new one's, the old lease is given back, and a pinned version never moves."""
    old = add_version(public, "acme/tiny@v1", llama)
    add_version(public, "lora@v1", llama_adapter(tmp_path / "adapter", llama, 1))
    pinned = ModelRef.parse("acme/pinned@v1")
    link_model(public, pinned, old)
    arguments = (
        "--root", str(public.path), "--device", "cpu", "--cache-limit", "64MiB",
        "--models", "base=acme/tiny@v1,lora=lora@v1,pinned=acme/pinned@v1", "--digest", f"pinned={old}",
    )  # fmt: skip
    lease = public.snapshot(old).lease
    with running(tmp_path / "log", *arguments) as server:
        assert models(server)["base"]["digest"] == str(old)
        assert models(server)["lora"]["parent"] == "base"
        with client(server) as asked:
            before, before_lora = ask(asked, "base"), ask(asked, "lora")
        with asking(server, "base", "lora") as answers:
            eventually(lambda: all(answers.values()), "answers")
            new = add_version(public, "acme/tiny@v1", other_llama)
            link_model(public, pinned, new)
            eventually(lambda: models(server)["base"]["digest"] == str(new), "the swap")
            for name in ("base", "lora"):
                eventually(lambda name=name: len(set(answers[name])) > 1, "an answer of the new version")  # type: ignore[misc]
        with client(server) as asked:
            after, after_lora = ask(asked, "base"), ask(asked, "lora")
            assert ask(asked, "pinned") == before
        assert set(answers["base"]) == {before, after}
        assert set(answers["lora"]) == {before_lora, after_lora}
        assert len({before, after, before_lora, after_lora}) == 4
        eventually(lambda: coming(server, "pinned")[0] == "failed", "the pin's refusal")
        assert "(the pin)" in coming(server, "pinned")[1]
        assert models(server)["pinned"]["digest"] == str(old)
        assert server.metric('holdfast_server_swaps_total{model="base",result="done"}') == 1
        assert server.metric('holdfast_server_swaps_total{model="pinned",result="failed"}') == 1
        assert is_held(lease)  # by the pinned one
        assert models(server)["base"]["next"] is None
        assert server.stop() == 0


def test_a_followed_file_says_what_is_served(
    llama: Path, other_llama: Path, public: PublicLayout, tmp_path: Path
) -> None:
    """A version that the file names is waited for while the old one serves, swapped in when it is whole, refused with
    its reason when it is not; models come and go with it; what is no list changes nothing. What serves stays leased,
    also where its snapshot went bad on the disk and was made anew."""
    followed = tmp_path / "models"
    followed.write_text("base=acme/tiny@v1\n")
    old = add_version(public, "acme/tiny@v1", llama)
    arguments = ("--root", str(public.path), "--device", "cpu", "--cache-limit", "64MiB", "--follow", str(followed))
    with running(tmp_path / "log", *arguments) as server, client(server) as asked:
        before = ask(asked, "base")
        public.snapshot(old).path.rename(tmp_path / "went bad")
        assert add_snapshot(public, llama) == old
        eventually(lambda: is_held(public.snapshot(old).lease), "the lease of the snapshot that was made anew")
        followed.write_text("base=acme/tiny@v2")
        eventually(lambda: coming(server, "base")[0] == "waiting", "waiting")
        assert "acme/tiny@v2, which is not on this node" in coming(server, "base")[1]
        new = add_snapshot(public, other_llama)
        file = public.snapshot(new).path / "model.safetensors"
        times = file.stat()
        os.utime(file)  # as if it had been written to
        link_model(public, ModelRef.parse("acme/tiny@v2"), new)
        eventually(lambda: coming(server, "base")[0] == "failed", "the refusal")
        assert "model.safetensors: mtime" in coming(server, "base")[1]
        assert models(server)["base"]["version"] == "v1"
        assert ask(asked, "base") == before
        assert server.get("/readyz")[0] == 200
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        link_model(public, ModelRef.parse("acme/tiny@v3"), new)
        followed.write_text("not a list of models")
        eventually(lambda: "stays as it is" in server.log.read_text(), "the complaint")
        followed.write_text("base=acme/tiny@v3,\nsecond=acme/tiny@v1\n")
        eventually(lambda: set(models(server)) == {"base", "second"}, "a second model")
        assert (models(server)["base"]["version"], models(server)["base"]["digest"]) == ("v3", str(new))
        assert ask(asked, "second") == before != ask(asked, "base")
        followed.write_text("base=acme/tiny@v3")
        eventually(lambda: set(models(server)) == {"base"}, "one model")
        eventually(lambda: not is_held(public.snapshot(old).lease), "the lease given back")
        maps = Path(f"/proc/{server.process.pid}/maps")
        eventually(lambda: old.hex not in maps.read_text(), "the old weights unmapped, as an answer may still be sent")
        assert new.hex in maps.read_text()
        assert 'holdfast_server_weights_bytes{model="second"}' not in server.get("/metrics")[1]
        with pytest.raises(openai.NotFoundError):
            ask(asked, "second")


def test_a_server_starts_when_its_followed_version_arrives_and_stops_in_a_swap(
    llama: Path, public: PublicLayout, tmp_path: Path
) -> None:
    """Without the weights it is alive and says what it waits for. SIGTERM while a swap hangs in its load lets what is
    in flight end whole, and the exit code is 0."""
    followed = tmp_path / "models"
    followed.write_text("acme/tiny@v1")
    arguments = ("--root", str(public.path), "--device", "cpu", "--follow", str(followed))
    with running(tmp_path / "log", *arguments, ready=False) as server:
        eventually(lambda: "no daemon fetches it" in server.get("/readyz")[1], "waiting")
        write_heartbeat(public)
        eventually(lambda: "nothing fetches it" in server.get("/readyz")[1], "that nothing fetches it")
        write_status(public, ModelRef.parse("acme/tiny@v1"), State.FETCHING, done=(1, 4))
        eventually(lambda: "the daemon fetches it: fetching, 1 B of 4 B (25 %)" in server.get("/readyz")[1], "progress")
        assert server.get("/readyz")[1].startswith("waiting for acme/tiny@v1, which is not on this node")
        assert server.log.read_text().count("acme/tiny waits for acme/tiny@v1, which is not on this node") == 3
        assert server.get("/healthz")[0] == 200
        add_version(public, "acme/tiny@v1", llama)
        eventually(lambda: server.get("/readyz")[0] == 200, "ready")
        hanging = tmp_path / "hanging"
        hanging.mkdir()
        os.mkfifo(hanging / "config.json")
        (public.models / "acme--tiny" / "v2").symlink_to(hanging)
        followed.write_text("acme/tiny@v2")
        eventually(lambda: coming(server, "acme/tiny")[0] == "loading", "the load")
        with client(server) as asked:
            stream = asked.completions.create(model="acme/tiny", prompt=PROMPT, max_tokens=300, stream=True, seed=2)
            first = next(stream)
            server.process.terminate()
            chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        assert server.process.wait(120) == 0
