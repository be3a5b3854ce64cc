"""The code, libraries and machine behind a result, without importing what is slow."""

import re

import torch

from tests import fresh
from tools.runtime.provenance import provenance


def test_versions_are_those_of_the_libraries():
    found = provenance()
    assert found["torch"] == torch.__version__
    assert re.match(r"\d+\.\d+", found["torchvision"])
    assert found["threads"] == torch.get_num_threads()


def test_the_training_code_imports_neither_torchvision_nor_tensorboard():
    code = "import sys, tools.runtime.provenance as p, tools.training.run; p.provenance()\n"
    code += "print([name for name in ('torchvision', 'tensorboard') if name in sys.modules])"
    done = fresh.run(code)
    assert done.stdout.strip() == "[]", done.stderr
