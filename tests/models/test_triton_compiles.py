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
from models.kernels import cuda, cuda_norm

POINTERS = dict(seeds="*i64", bits="*u8", others="*i32")
SIZES = ("timesteps", "neurons", "x_stride", "channels", "channel_stride", "rows", "rows_of_program", "inner", "size")
INPUTS = ("x", "spikes", "grad_spikes", "grad_x", "residual", "grad", "result", "numbers")
AFFINE = ("factors", "shifts", "residual", "residual_factors", "residual_shifts")
CONSTANTS = dict(
    THRESHOLD_BY_CHANNEL=True, DECAY_BY_CHANNEL=False, SCALE_BY_CHANNEL=True, RESET_VALUE_BY_CHANNEL=False,
    DETACH_RESET=False, DECAY_INPUT=True, BLOCK=cuda.BLOCK,
)


def build(kernel, capability, dtype, absent=(), **constants):
    real = "fp64" if dtype == "fp64" else "fp32"
    constants = {**CONSTANTS, "REAL": tl.float64 if real == "fp64" else tl.float32, **constants}
    names, signature = list(inspect.signature(kernel.fn).parameters), {}
    constants |= dict.fromkeys(absent)
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_number"):
            signature[name] = "fp64"
        elif name in SIZES or name[-1].isdigit():
            signature[name] = "i32"
        elif name in INPUTS:
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
        absent = () if law % 2 or options is quiet else AFFINE if kernel is cuda._backward else (*AFFINE, "bits")
        assert "cubin" in build(kernel, capability, dtype, absent, **options).asm
assert "cubin" in build(cuda._backward, 90, "fp64", **quiet).asm
for dtype, capability, integer in zip(types, (80, 90, 80, 90), (tl.int32, tl.int16, tl.int16, tl.int64)):
    for kernel, absent, options in (
        (cuda_norm._sums, (), dict(WIDTH=32, SIDE_BY_SIDE=True, inner=1)),
        (cuda_norm._sums, ("grad",), dict(WIDTH=64, SIDE_BY_SIDE=False)),
        (cuda_norm._norm_backward, (), {}),
        (cuda_norm._pack, (), dict(WIDTH=1, INTEGER=integer)),
        (cuda_norm._pack, (), dict(WIDTH=4, INTEGER=integer)),
        (cuda_norm._unpack, (), dict(WIDTH=1)),
        (cuda_norm._unpack, (), dict(WIDTH=4)),
    ):
        assert "cubin" in build(kernel, capability, dtype, absent, **options).asm
print("compiled")
"""

# Triton asks its hook whether it need not compile: so nothing is compiled, and nothing launched.
COUNT = """
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from models import Gaussian
from models.kernels import cuda
from models.kernels.common import Neuron, Saved


class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = get_current_stream = staticmethod(lambda *device: 0)


def compiled(key, **others):
    variants.add(key)
    return True


driver.set_active(Driver())
knobs.runtime.jit_cache_hook = compiled
x, seeds = torch.zeros(2, 3, 64), torch.zeros(2, dtype=torch.int64)
counts = []
for numbers in ((0.3, 0.0, 0.5, 1.0, 0.0), (0.4, 0.1, 0.25, 0.5, 0.2), (1.0, 1.0, 0.0, 16.0, 1.0)), ((1.0,) * 5,):
    variants = set()
    for scale, loc, decay, threshold, value in numbers:
        neuron = Neuron(Gaussian(scale, loc), scale, decay, threshold, membrane_noise=True, reset_value=value)
        outputs = cuda.forward(x, None, seeds, neuron, True, True)
        cuda.backward((x, None), Saved(x, None, seeds, outputs[0], outputs[2]), neuron, (False,) * 4)
    counts.append(len(variants))
print(*counts)
"""


@pytest.fixture
def run_compiler(repository, tmp_path, monkeypatch):
    """Runs code for which Triton compiles instead of interpreting, and returns what it prints."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def run(code):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    return run


@pytest.mark.slow
def test_the_kernels_compile_for_ampere_and_hopper(run_compiler):
    assert run_compiler(COMPILE) == "compiled"


def test_other_numbers_need_no_other_code(run_compiler):
    pytest.importorskip("triton.knobs")  # from Triton 3.3 on
    assert run_compiler(COUNT) == "2 2"  # forward and backward
