"""The Triton kernels compile for CUDA devices; that needs no device (they run in tests/models/test_triton.py)."""

import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import inspect
import sys
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from models.kernels import cuda

POINTERS = dict(seeds="*i64")
CONSTANTS = dict(
    THRESHOLD=1.0, DECAY=0.5, SCALE=0.3, THRESHOLD_BY_CHANNEL=True, DECAY_BY_CHANNEL=False, SCALE_BY_CHANNEL=True,
    LOC=0.0, DETACH_RESET=False, DECAY_INPUT=True, BLOCK=cuda.BLOCK,
)


def build(kernel, capability, dtype, **constants):
    real = "fp64" if dtype == "fp64" else "fp32"
    constants = {**CONSTANTS, "REAL": tl.float64 if real == "fp64" else tl.float32, **constants}
    names, signature = list(inspect.signature(kernel.fn).parameters), {}
    for name in names:
        if name.isupper():
            signature[name] = "constexpr"
        elif name in ("timesteps", "neurons", "x_stride", "channels", "channel_stride") or name[-1].isdigit():
            signature[name] = "i32"
        elif name in ("x", "spikes", "grad_spikes", "grad_x"):
            signature[name] = "*" + dtype
        else:
            signature[name] = POINTERS.get(name, "*" + real)
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": cuda.WARPS})


types = ("fp32", "bf16", "fp16", "fp64")
for law in range(len(cuda.KNOWN_LAWS)):
    dtype, capability = types[law % len(types)], 80 if law % 2 else 90
    noisy = dict(LAW=law, RESET=law % 3, MEMBRANE_NOISE=True, THRESHOLD_NOISE=True, MEAN_FIELD=False)
    quiet = dict(LAW=law, RESET=0, MEMBRANE_NOISE=False, THRESHOLD_NOISE=False, MEAN_FIELD=True)
    for kernel, options in ((cuda._forward, noisy), (cuda._backward, noisy), (cuda._forward, quiet)):
        assert "cubin" in build(kernel, capability, dtype, **options).asm
assert "cubin" in build(cuda._backward, 90, "fp64", **quiet).asm
print("compiled")
"""


@pytest.mark.slow
def test_the_kernels_compile_for_ampere_and_hopper(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=repository, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "compiled"
