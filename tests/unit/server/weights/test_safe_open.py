from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors import safe_open as reference_safe_open

from cached.contract.errors import Permanent
from server import load_file, load_model, safe_open
from server.weights.cuda.accelerator import Accelerator
from tests.support.checkpoints import descriptors, random_raw, same, write
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL

ANY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = {"a": (3, 4, 5), "long": (700, 90), "s": (), "e": (0, 4), "line": (9,)}
ITEM = (
    st.integers(-10, 10)
    | st.slices(12)
    | st.just(...)
    | st.none()
    | st.booleans()
    | st.lists(st.integers(-3, 3), min_size=1, max_size=3).map(torch.tensor)
    | st.just(1.5)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {name: random_raw("F32", shape, number) for number, (name, shape) in enumerate(SHAPES.items())}
    tensors["odd"] = random_raw("U8", (3,), 9)
    tensors["half"] = random_raw("BF16", (333, 4), 10)
    return write(tmp_path / "m.safetensors", tensors, {"format": "pt", "ü": "ö"})


def test_it_answers_as_the_reference_does(path: Path, accelerator: Accelerator) -> None:
    """Names, their orders, metadata, shapes, dtypes and tensors are the safetensors package's."""
    with reference_safe_open(path, "pt") as expected:
        for device in ("cpu", None, accelerator):
            with safe_open(path, "pt", device) as found:
                assert found.keys() == expected.keys()
                assert found.offset_keys() == expected.offset_keys()
                assert found.metadata() == expected.metadata()
                assert list(found.get_tensors()) == expected.offset_keys()
                for name in reversed(expected.keys()):  # any order, and again
                    for _ in range(2):
                        assert same(found.get_tensor(name), expected.get_tensor(name))
                    assert found.get_slice(name).get_shape() == expected.get_slice(name).get_shape()
                    assert found.get_slice(name).get_dtype() == expected.get_slice(name).get_dtype()


@pytest.mark.parametrize("metadata", [None, {}, {"a": ""}])
def test_metadata_is_what_the_reference_has(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    """No metadata is None, and metadata without an entry is an empty dictionary."""
    made = write(tmp_path / "m.safetensors", {"t": random_raw("U8", (3,), 1)}, metadata)
    with reference_safe_open(made, "pt") as expected, safe_open(made, "pt", backend="pread") as found:
        assert found.metadata() == expected.metadata() == metadata


@ANY
@given(name=st.sampled_from([*SHAPES, "half"]), index=ITEM | st.lists(ITEM, max_size=4).map(tuple))
def test_an_index_gives_what_the_reference_gives_or_its_error(
    name: str, index: Any, path: Path, accelerator: Accelerator
) -> None:
    """For any index the tensor is the safetensors package's, and what it refuses is refused with the same error."""
    with reference_safe_open(path, "pt") as file:
        try:
            expected: torch.Tensor | Exception = file.get_slice(name)[index]
        except (IndexError, ValueError, TypeError) as error:
            expected = error
    for device in ("cpu", accelerator):
        with safe_open(path, "pt", device) as file:
            if isinstance(expected, torch.Tensor):
                assert same(file.get_slice(name)[index], expected)
            else:
                with pytest.raises(type(expected)) as caught:
                    file.get_slice(name)[index]
                assert str(caught.value) == str(expected)


@pytest.mark.parametrize("index", [torch.tensor([3]), (0, torch.tensor([-5])), ([0, 3],), (..., 1.5)])
def test_an_index_that_torch_refuses_never_gets_to_the_device(index: Any, path: Path, fake: FakeRuntime) -> None:
    """An index out of range is refused on the host: on a GPU it would be an assertion that ends every later call."""
    with safe_open(path, "pt", fake_accelerator(fake, SMALL)) as file, pytest.raises(IndexError):
        file.get_slice("a")[index]
    assert fake.calls["cudaMemcpyAsync"] == 0


def read_bytes() -> int:
    """What this process has asked the kernel for through reads."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize(("index", "share"), [((slice(96, 128),), 1 / 4), ((slice(None), slice(0, 4096)), 1 / 4)])
def test_a_share_reads_its_own_bytes(index: Any, share: float, tmp_path: Path, accelerator: Accelerator) -> None:
    """A tensor-parallel rank's rows, or columns, are all that is read for it."""
    raw = random_raw("F32", (128, 16384), 1)
    path = write(tmp_path / "m.safetensors", {"t": raw})
    with safe_open(path, "pt", accelerator) as file:
        file.get_slice("t")[:1]  # the ring is there
        before = read_bytes()
        found = file.get_slice("t")[index]
        taken = read_bytes() - before
    assert same(found, raw.tensor()[index])
    assert taken < len(raw.data) * share * 1.05 + 65536


def test_ranks_together_have_the_whole_tensor(path: Path, accelerator: Accelerator) -> None:
    """The shares of any number of ranks along either axis, joined, are the tensor."""
    with safe_open(path, "pt", accelerator) as file:
        whole, part = file.get_tensor("long"), file.get_slice("long")
        for ranks in (2, 5, 7):
            rows, columns = -(-700 // ranks), -(-90 // ranks)
            down = [part[rank * rows : (rank + 1) * rows] for rank in range(ranks)]
            across = [part[:, rank * columns : (rank + 1) * columns] for rank in range(ranks)]
            assert same(torch.cat(down), whole)
            assert same(torch.cat(across, dim=1), whole)


def test_many_threads_may_ask_at_once(path: Path, accelerator: Accelerator) -> None:
    """One handle used by many threads gives each what it asked for."""
    with reference_safe_open(path, "pt") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    wrong: list[str] = []

    def ask(found: safe_open) -> None:
        for name, tensor in expected.items():
            if not same(found.get_tensor(name), tensor) or not same(found.get_slice(name)[...], tensor):
                wrong.append(name)

    for device in ("cpu", accelerator):
        with safe_open(path, "pt", device) as found:
            threads = [threading.Thread(target=ask, args=(found,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert wrong == []


def test_tensors_and_slices_outlive_the_handle(path: Path, accelerator: Accelerator) -> None:
    """After `with` the handle refuses, and what it gave out goes on working until it is dropped; then all is closed."""
    for device in ("cpu", accelerator):
        with safe_open(path, "pt", device) as file:
            tensor, part = file.get_tensor("long"), file.get_slice("long")
            expected = tensor.clone()
        for ask in (file.keys, file.metadata, lambda file=file: file.get_tensor("a")):
            with pytest.raises(Permanent, match="closed"):
                ask()
        assert same(tensor, expected)
        assert same(part[3:9], expected[3:9])
        del file, part, ask
    assert descriptors(path) == []


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda path: safe_open(path, "pt").get_tensor("absent"), "no_tensor"),
        (lambda path: safe_open(path, "pt").get_slice("absent"), "no_tensor"),
        (lambda path: safe_open(path, "jax"), "unsupported_framework"),
        (lambda path: safe_open(path, "np").get_tensor("half"), "unsupported_dtype"),
        (lambda path: safe_open(path, "pt", backend="tape"), "invalid_backend"),
        (lambda path: safe_open(path, "pt", "meta"), "unsupported_device"),
        (lambda path: safe_open(path.parent, "pt"), "unreadable"),
        (lambda path: safe_open(path.with_name("absent"), "pt"), "unreadable"),
    ],
)
def test_a_refusal_has_a_code(ask: Any, code: str, path: Path) -> None:
    """What cannot be is refused by name."""
    with pytest.raises(Permanent) as caught:
        ask(path)
    assert caught.value.code == code


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("framework", ["np", "numpy"])
def test_numpy_arrays_are_the_references(framework: str, backend: str, path: Path) -> None:
    """For numpy names, shapes, dtypes and bytes are the safetensors package's, and an array may be written to."""
    with reference_safe_open(path, "np") as expected, safe_open(path, framework, backend=backend) as found:
        for name in [*SHAPES, "odd"]:
            array, plain = found.get_tensor(name), expected.get_tensor(name)
            assert (array.dtype, array.shape, array.tobytes()) == (plain.dtype, plain.shape, plain.tobytes())
            assert array.flags.aligned
        assert found.get_slice("a").get_shape() == [3, 4, 5]
        kept = found.get_tensor("long")
    before = path.read_bytes()
    kept[:] = 0
    assert path.read_bytes() == before


ARRAY_ITEM = st.integers(-7, 7) | st.slices(5) | st.just(...) | st.none() | st.booleans() | st.just(1.5)


@ANY
@given(name=st.sampled_from([*SHAPES]), index=ARRAY_ITEM | st.lists(ARRAY_ITEM, max_size=4).map(tuple) | st.just([]))
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_an_index_into_numpy_gives_what_the_reference_gives(name: str, index: Any, backend: str, path: Path) -> None:
    """Where the safetensors package gives a part, so does this; what it refuses is refused, unless it means a part of
    the tensor to numpy: an empty one, or one that is counted from the end."""
    with reference_safe_open(path, "np") as file:
        whole = file.get_tensor(name)
        try:
            expected: Any = file.get_slice(name)[index]
        except (SafetensorError, OverflowError, SystemError, ValueError) as error:
            expected = error
        except BaseException as error:  # noqa: BLE001 - a panic of its Rust code, for some empty parts; no class to name
            assert type(error).__name__ == "PanicException"
            expected = error
    with safe_open(path, "np", backend=backend) as file:
        try:
            found: Any = file.get_slice(name)[index]
        except SafetensorError as error:
            found = error
    if isinstance(found, Exception):
        truth = any(isinstance(item, bool) for item in (index if isinstance(index, tuple) else (index,)))
        assert truth or isinstance(expected, BaseException)
    else:
        plain = whole[(slice(0, 0),) if index == [] else index]
        assert (found.shape, found.tobytes()) == (plain.shape, plain.tobytes())
        assert isinstance(expected, BaseException) or expected.tobytes() == found.tobytes()


@pytest.mark.parametrize(
    "index",
    [
        *(5, -4, (0, 9), slice(9), (slice(None), slice(1, 6)), slice(5, None), (0,) * 4, None, 1.5, "x", [0, 1]),
        *(slice(None, None, -1), slice(0, 2, 0), (..., ...), (slice(None), 20), (slice(2, None, 2), 20), (0, ..., -6)),
    ],
)
def test_an_index_beyond_an_array_is_refused_in_the_references_words(index: Any, path: Path) -> None:
    """Error class and text of an index that numpy would clip, or that no array takes, are the safetensors package's."""
    with reference_safe_open(path, "np") as file, pytest.raises(SafetensorError) as expected:
        file.get_slice("a")[index]
    with safe_open(path, "np") as file, pytest.raises(SafetensorError) as found:
        file.get_slice("a")[index]
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_a_refusal_is_the_packages_error(framework: str, path: Path, tmp_path: Path) -> None:
    """What catches safetensors' errors catches this loader's: of a handle, of a file, of a name, of a missing file."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(path.read_bytes()[:-1])
    with safe_open(path, framework) as closed, pytest.raises(SafetensorError):
        closed.get_tensor("absent")
    for ask in (closed.keys, lambda: safe_open(bad, framework), lambda: safe_open(path, "pt", "nowhere")):
        with pytest.raises(SafetensorError):
            ask()
    absent = tmp_path / "absent.safetensors"
    for read in (safe_open, load_file, lambda found: load_model(torch.nn.Linear(2, 2), found)):
        with pytest.raises(FileNotFoundError) as missing:
            read(absent)
        with pytest.raises(FileNotFoundError) as expected, reference_safe_open(absent, framework):
            pass
        assert str(missing.value) == str(expected.value)
        assert missing.value.filename == str(absent)


def test_numpy_arrays_are_on_the_cpu(path: Path, fake: FakeRuntime) -> None:
    """No array of numpy is on a GPU: that is refused before the file is opened."""
    with pytest.raises(Permanent, match="numpy"):
        safe_open(path, "np", fake_accelerator(fake, SMALL))


def test_a_copy_is_not_the_files(path: Path) -> None:
    """With `pread` tensors are this process's own: a file that is cut short takes none of them with it, and the handle
    says so."""
    tensors = load_file(path, backend="pread")
    with safe_open(path, "pt", backend="pread") as file:
        first = file.get_tensor("long")
        os.truncate(path, 1000)
        assert same(first, tensors["long"])
        with pytest.raises(Permanent, match="truncated"):
            file.get_tensor("half")
    del file
    assert descriptors(path) == []


def test_importing_the_package_is_cheap() -> None:
    """`import server` imports no torch; asking for a name does, and an unknown one is an AttributeError."""
    code = (
        "import sys, server\nassert 'torch' not in sys.modules\n"
        "from server import load_file, load_model, safe_open, iter_tensors\nassert 'torch' in sys.modules\n"
        "assert 'transformers' not in sys.modules\nassert not hasattr(server, 'nope')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
