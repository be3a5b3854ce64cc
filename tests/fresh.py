"""Code and tests in processes of their own, forks, as each import of PyTorch takes seconds."""

import ctypes
import functools
import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch"])


def run(code, *arguments, timeout=600, **environment):
    """What `python -c` does with the code in the root folder: a `subprocess.CompletedProcess`.

    The process is a fork of a server that has imported PyTorch alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / "out", Path(folder) / "err"]
        process = _CONTEXT.Process(target=_work, args=(code, arguments, environment, outputs))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(code, timeout)
        return subprocess.CompletedProcess(code, process.exitcode, *(path.read_text() for path in outputs))


def _work(code, arguments, environment, outputs):
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(_ROOT)
    os.environ.update(environment)
    sys.path[:] = ["", *(path for path in sys.path if path and Path(path) != _ROOT)]
    sys.argv[:] = ["-c", *arguments]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # this one
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


def in_a_fork(test, timeout=600):
    """A test that measures the memory or counts the objects of its process gets one of its own."""

    @functools.wraps(test)
    def run(**fixtures):
        receiver, sender = multiprocessing.Pipe(duplex=False)

        def work():
            gc.freeze()  # what other tests left in this process is not counted
            try:
                test(**fixtures)
                sender.send("")
            except BaseException:
                sender.send(traceback.format_exc())

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        sender.close()
        try:
            failure = receiver.recv() if receiver.poll(timeout) else f"it did not end in {timeout} s"
        except EOFError:
            failure = "it ended early"
        if failure:
            process.kill()
        process.join()
        assert not failure, f"{failure} (exit code {process.exitcode})"
        assert process.exitcode == 0, f"exit code {process.exitcode}"

    return run


class _Mallinfo2(ctypes.Structure):
    """What glibc says of its heap."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def allocated():
    """Bytes that the C library has given out, also to graphs and kernels that Python does not see; 0 without glibc."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd
