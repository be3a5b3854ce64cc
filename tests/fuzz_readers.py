"""Feed damaged files to all readers for some minutes, guided by the branches that they take.

    pip install atheris
    python tests/fuzz_readers.py --minutes 10

Atheris (a front end of libFuzzer) stops at the first undocumented exception, a hang of 30 s, or 4 GB of memory, and
leaves the file that caused it in --folder; given as an argument to this script, that file is tried again.
"""

import argparse
import contextlib
import os
import sys
import warnings
from pathlib import Path

import atheris
import numpy as np

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not tests/, which has another `tools`
with atheris.instrument_imports(include=["tools", "dataset_utils"]):
    from tests.tools.data.events.test_formats import KINDS, SIZE, written
    from tests.tools.test_hostile_input import DOCUMENTED, READERS, entries, repacked
    from tools.data.events.formats import read_recording
    from tools.data.events.gestures import read_gesture_labels
    from tools.data.events.recordings import Recording


def recording(folder, kind):
    path = written(folder, kind)

    def read():
        Recording(path).load(SIZE, lenient=True)
        Recording(path).load(SIZE)

    return path, read


def compound(folder):
    """HDF5 as of Prophesee's tools."""
    import h5py

    path = folder / "e.h5"
    with h5py.File(path, "w") as file:
        table = np.array([(1, 2, 1, 10), (3, 4, 0, 20)], [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
        file.create_dataset("CD/events", data=table, chunks=(1,), compression="lzf", shuffle=True)
        file.create_dataset("EXT_TRIGGER/events", data=table[:1])
        file["t_offset"] = 5
        file.attrs["geometry"] = np.bytes_("640x480")
    return path, lambda: read_recording(path, lenient=True)


def gestures(folder):
    path = folder / "user01_labels.csv"
    path.write_text("class,startTime_usec,endTime_usec\n1,10,20\n2,25,30\n")
    return path, lambda: read_gesture_labels(path)


def entry_of(reader, folder):
    """The largest part of an archive in place of the archive, so that its checksums do not keep damage away."""
    path, read = reader(folder)
    raw = path.read_bytes()
    chosen = max(entries(path), key=lambda entry: (entry[0].endswith((".pkl", ".npy")), len(entry[1])))
    inner = folder / "entry"
    inner.write_bytes(chosen[1])

    def read_changed():
        path.write_bytes(raw)
        repacked(path, lambda name, content: inner.read_bytes() if name == chosen[0] else content)
        return read()

    return inner, read_changed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path("results/fuzz"), help="where to put what is found")
    parser.add_argument("crash", nargs="*", help="files to try once")
    options = parser.parse_args()
    makers = dict(READERS) | {kind: lambda folder, kind=kind: recording(folder, kind) for kind in KINDS}
    makers |= {"gesture labels": gestures, "compound": compound}
    for name in ("our checkpoint", "published checkpoint", "image cache", "npz"):
        makers[f"entry of {name}"] = lambda folder, maker=makers[name]: entry_of(maker, folder)
    corpus = options.folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    targets = []
    for number, (name, make) in enumerate(makers.items()):
        folder = options.folder.resolve() / "work" / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["NSNN_CACHE"] = str(folder / "cache")
        path, read = make(folder)
        (corpus / f"{number}").write_bytes(bytes([number]) + path.read_bytes())
        targets.append((folder, path, read))

    def try_one(raw):
        if not raw or raw[0] >= len(targets):
            return
        folder, path, read = targets[raw[0]]
        os.environ["NSNN_CACHE"] = str(folder / "cache")
        path.write_bytes(raw[1:])
        with contextlib.suppress(DOCUMENTED):
            read()

    flags = [f"-max_total_time={60 * options.minutes:.0f}", f"-artifact_prefix={options.folder}/", "-timeout=30"]
    flags += ["-rss_limit_mb=4096", "-max_len=100000", "-print_final_stats=1"]
    if not options.crash:
        flags.append("-close_fd_mask=2")  # what readers print about thousands of files
    atheris.Setup([sys.argv[0], *flags, *(options.crash or [str(corpus)])], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
