from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cached.contract.errors import Permanent
from server import load_file
from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.cudart import CudaRuntime, load_library
from server.weights.cuda.runtime import CudaError
from tests.support.checkpoints import random_raw, same, write
from tests.support.fake_cuda import FakeMemory, FakeRuntime
from tests.unit.server.weights.conftest import SMALL

# The prototypes are those of cuda_runtime_api.h, so that a wrong argument on our side is a wrong number here.
SOURCE = r"""
#include <stddef.h>
#include <string.h>
typedef int E; typedef void *S; typedef void *V;
static size_t streams, events; static int last, device = -1, waits;
static E done(int ok) { if (!ok) last = 1; return ok ? 0 : 1; }
E cudaSetDevice(int d) { device = d; return done(d == 3); }
E cudaHostRegister(void *p, size_t n, unsigned f) { return done(p && n >= 4096 && (f == 1 || f == 9)); }
E cudaHostUnregister(void *p) { return done(p != 0); }
E cudaStreamCreateWithFlags(S *s, unsigned f) { *s = (S)(0x7000000000000000 + ++streams); return done(f == 1); }
E cudaStreamDestroy(S s) { return done((size_t)s > 0x7000000000000000); }
E cudaStreamSynchronize(S s) { return done((size_t)s > 0x7000000000000000); }
E cudaStreamWaitEvent(S s, V e, unsigned f) { waits++; return done(e != 0 && f == 0); }
E cudaEventCreateWithFlags(V *e, unsigned f) { *e = (V)(0x6000000000000000 + ++events); return done(f == 3); }
E cudaEventDestroy(V e) { return done((size_t)e > 0x6000000000000000); }
E cudaEventRecord(V e, S s) { return done((size_t)e > 0x6000000000000000); }
E cudaEventSynchronize(V e) { return done((size_t)e > 0x6000000000000000); }
E cudaMemcpyAsync(void *d, const void *s, size_t n, int k, S t) { memcpy(d, s, n); return done(k == 1); }
E cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, int k, S t) {
  for (size_t r = 0; r < h; r++) memcpy((char *)d + r * dp, (const char *)s + r * sp, w);
  return done(k == 1 && dp >= w && sp >= w);
}
E cudaMemGetInfo(size_t *f, size_t *t) { *f = 1UL << 40; *t = 1UL << 41; return 0; }
E cudaDeviceGetAttribute(int *v, int a, int d) { *v = 0; return d == 3 && a == 113 ? 0 : (last = 101); }
E cudaDeviceGetPCIBusId(char *b, int n, int d) { strncpy(b, "0000:3B:00.0", n); return done(d == 3); }
E cudaGetLastError(void) { int was = last; last = 0; return was; }
E peek(void) { return last; }
const char *cudaGetErrorString(E e) { return e == 101 ? "invalid device ordinal" : "invalid argument"; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A runtime library in C that checks its arguments and copies at once."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("cudart")
    (folder / "fake.c").write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-w", "-o", str(folder / "fake.so"), str(folder / "fake.c")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "fake.so"))


class Memory(FakeMemory):
    """Host memory, and a consumer's stream that the library accepts."""

    def stream(self) -> int:
        return 0


def test_arguments_reach_the_library_as_its_header_has_them(library: ctypes.CDLL, tmp_path: Path) -> None:
    """Whole loads and strided slices through real C functions are right, 64-bit handles and sizes included."""
    from server import safe_open

    tensors = {f"t{number}": random_raw("F32", (300, 200 + number), number) for number in range(5)}
    path = write(tmp_path / "m.safetensors", tensors)
    accelerator = Accelerator(torch.device("cpu"), CudaRuntime(library, 3), Memory(FakeRuntime()), SMALL)
    found = load_file(path, accelerator)
    assert all(same(found[name], raw.tensor()) for name, raw in tensors.items())
    with safe_open(path, "pt", accelerator) as file:
        assert same(file.get_slice("t2")[:, 7:100], tensors["t2"].tensor()[:, 7:100])
    assert accelerator.runtime.get_pci_bus_id() == "0000:3b:00.0"
    accelerator.close()


def test_an_error_names_the_call_and_is_not_left_behind(library: ctypes.CDLL) -> None:
    """What the runtime says is in the message, and its own record of the error is cleared."""
    runtime = CudaRuntime(library, 3)
    with pytest.raises(CudaError, match=r"cudaDeviceGetAttribute on GPU 3: invalid device ordinal \(error 101\)"):
        runtime.get_attribute(7)
    assert library.peek() == 0
    with pytest.raises(CudaError, match="cudaSetDevice"):
        CudaRuntime(library, 4)


def test_without_a_gpu_the_real_runtime_says_so() -> None:
    """Without a GPU there is either no library, and what to install, or one that has every call and finds no device."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Permanent, match=r"libcudart|cudaSetDevice on GPU 0: .* \(error (35|100)\)") as caught:
        CudaRuntime(load_library(), 0)
    assert caught.value.code in ("no_cuda_runtime", "cuda_error")
