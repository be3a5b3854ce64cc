"""The device that --device names."""

import pytest
import torch

from tools.errors import UserError
from tools.runtime.device import set_up_torch


@pytest.mark.parametrize("name", ["meta", "hpu", "cuda:99", "nonsense", ""])
def test_a_device_that_cannot_be_used_is_an_error_of_one_line(name):
    with pytest.raises(UserError, match=f"--device {name}.*: .") as refused:
        set_up_torch(name, threads=0)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_needs_such_a_device():
    with pytest.raises(UserError, match="--device cuda cannot be used"):
        set_up_torch("cuda", threads=0)


def test_the_cpu_can_be_used():
    assert set_up_torch("cpu", threads=0) == torch.device("cpu")
