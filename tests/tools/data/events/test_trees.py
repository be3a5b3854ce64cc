"""The folders in which the event data sets are published: every layout gives the same recordings and splits."""

import shutil

import numpy as np
import pytest
from scipy.io import savemat

from tests.conftest import first_are_fast
from tests.tools.data.events.written import (
    aedat2,
    caltech101_tree,
    cifar10_tree,
    columns,
    ncars_tree,
    nmnist_tree,
    official_gestures,
    spikingjelly_gestures,
    tonic_gestures,
    touch,
)
from tools.data.events.frames import Framing
from tools.data.events.reading import EventFormatError
from tools.data.events.recordings import TRANSPOSED, UPSIDE_DOWN, Recording
from tools.data.events.store import FrameStore
from tools.data.events.trees import CIFAR10_CLASSES, TREES, list_dvscifar10, list_dvsgesture, recognise


def test_nmnist(tmp_path):
    nmnist_tree(tmp_path)
    for part in ("Train", "Test"):
        touch(tmp_path / part / "0" / "._00001.bin")  # which macOS leaves behind
    train, test = TREES["nmnist"].list_recordings(tmp_path, "9:1")
    assert [len(train), len(test)] == [30, 20]
    assert all(recording.label == int(recording.path.parent.name) for recording in train + test)
    assert {recording.path.parent.parent.name for recording in train} == {"Train"}
    shutil.rmtree(tmp_path / "Test")
    with pytest.raises(FileNotFoundError, match="has no recordings for testing .in test. of .*N-MNIST"):  # half
        TREES["nmnist"].list_recordings(tmp_path, "9:1")


@pytest.mark.parametrize("write", [official_gestures, spikingjelly_gestures, tonic_gestures])
def test_every_layout_of_dvsgesture_has_its_users_apart(tmp_path, write):
    write(tmp_path)
    train, test = list_dvsgesture(tmp_path)
    assert sorted(recording.label for recording in train) == [0, 0, 1, 1, 10, 10]
    assert sorted(recording.label for recording in test) == [0, 1, 10]
    assert {"user03" in str(recording.path) for recording in train} == {False}
    assert {"user03" in str(recording.path) for recording in test} == {True}
    assert len(train[0].load((128, 128))[0]) >= 3
    assert recognise(tmp_path) == ("dvsgesture", (train, test))


def test_what_is_left_of_the_official_gestures_hides_no_other_layout(tmp_path):
    spikingjelly_gestures(tmp_path)
    touch(tmp_path / "trials_to_train.txt", b"user01.aedat")
    assert [len(part) for part in list_dvsgesture(tmp_path)] == [6, 3]
    touch(tmp_path / "trials_to_test.txt", b"")
    assert [len(part) for part in list_dvsgesture(tmp_path)] == [6, 3]


@pytest.mark.parametrize("name", ["../a.aedat", "a.npz", 100 * "/"])
def test_a_list_of_trials_names_files_beside_it(tmp_path, name):
    official_gestures(tmp_path)
    touch(tmp_path / "trials_to_test.txt", name.encode())
    with pytest.raises(EventFormatError, match=f"test.txt, byte 0: .* got {name[:80]!r}$"):
        list_dvsgesture(tmp_path)


def test_a_gesture_is_the_part_of_its_recording_that_the_labels_name(tmp_path):
    official_gestures(tmp_path)
    train, _ = list_dvsgesture(tmp_path)
    times = [recording.load((128, 128))[0]["t"].tolist() for recording in train[:3]]
    assert times == [[start, start + 1, start + 2] for start in (0, 1000, 2000)]  # the end does not belong to it


@pytest.mark.parametrize("suffix", ["aedat", "npz", "mat"])
@pytest.mark.parametrize(("split", "training"), [("9:1", 9), ("7:3", 7)])
def test_dvscifar10_is_cut_in_the_order_of_the_numbers(tmp_path, suffix, split, training):
    folder = tmp_path / "events_np" if suffix == "npz" else tmp_path
    cifar10_tree(folder, suffix, 12)
    train, test = list_dvscifar10(tmp_path, split)
    wanted = round(training / 10 * 12)
    for label, name in enumerate(CIFAR10_CLASSES):
        for part, numbers in ((train, range(wanted)), (test, range(wanted, 12))):
            paths = [recording.path.stem for recording in part if recording.label == label]
            assert paths == [f"cifar10_{name}_{number}" for number in numbers]  # 2 comes before 10


def test_the_splits_of_dvscifar10_are_disjoint_and_the_same_for_every_kind_of_file(tmp_path):
    stems = {}
    for suffix in ("aedat", "mat", "npz"):
        cifar10_tree(tmp_path / suffix, suffix)
        for split in ("9:1", "7:3"):
            parts = list_dvscifar10(tmp_path / suffix, split)
            sets = [{recording.path.stem for recording in part} for part in parts]
            assert not sets[0] & sets[1] and len(sets[0] | sets[1]) == 100
            stems.setdefault(split, []).append(sets)
    assert all(sets == by_suffix[0] for by_suffix in stems.values() for sets in by_suffix)


def test_a_missing_recording_moves_no_other_to_another_part(tmp_path):
    cifar10_tree(tmp_path, "aedat", 20)
    before = [{recording.path for recording in part} for part in list_dvscifar10(tmp_path)]
    gone = {path for path in (tmp_path / "dog").glob("*") if int(path.stem.split("_")[-1]) < 10}
    for path in gone:
        path.unlink()
    after = [{recording.path for recording in part} for part in list_dvscifar10(tmp_path)]
    assert len(gone) == 10 and after == [part - gone for part in before]


def test_the_same_recordings_in_two_kinds_of_file_are_listed_once(tmp_path):
    for suffix in ("mat", "AEDAT"):
        cifar10_tree(tmp_path, suffix)
    touch(tmp_path / "dog" / "._cifar10_dog_0.AEDAT")
    recordings = sum(list_dvscifar10(tmp_path), [])
    assert len(recordings) == 100 and {recording.path.suffix for recording in recordings} == {".AEDAT"}


def test_a_recording_without_number_is_named(tmp_path):
    cifar10_tree(tmp_path, "aedat")
    touch(tmp_path / "dog" / "notes.aedat")
    with pytest.raises(ValueError, match="notes.aedat has no number"):
        list_dvscifar10(tmp_path)
    (tmp_path / "dog" / "notes.aedat").rename(tmp_path / "dog" / "1234567890.aedat")  # of no data set
    with pytest.raises(ValueError, match="1234567890.aedat has no number"):
        list_dvscifar10(tmp_path)
    (tmp_path / "dog" / "1234567890.aedat").rename(tmp_path / "dog" / "123456789.aedat")
    assert len(list_dvscifar10(tmp_path).train) == 9 * 9 + 10


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"\xff\xfe"), lambda path: path.unlink()])
def test_a_trial_whose_labels_cannot_be_read_is_one_recording_with_a_problem(tmp_path, damage):
    official_gestures(tmp_path)
    damage(tmp_path / "user01_fluorescent_labels.csv")
    train, test = list_dvsgesture(tmp_path)
    assert [len(train), len(test)] == [1 + 3, 3] and recognise(tmp_path)[0] == "dvsgesture"
    with pytest.raises(EventFormatError, match="user01_fluorescent.aedat, byte 0: .*labels.csv"):
        train[0].load((128, 128))
    store = FrameStore("test", train, Framing(2, "count", (128, 128), (8, 8)), True, 1, tmp_path / "cache")
    assert list(store.skipped) == [0] and "user01" in store.skipped[0]


def test_files_that_other_programs_leave_are_not_taken_for_recordings(tmp_path):
    spikingjelly_gestures(tmp_path)
    tonic_gestures(tmp_path / "tonic")
    touch(tmp_path / "events_np" / "train" / ".ipynb_checkpoints" / "a.npz")
    touch(tmp_path / "events_np" / "train" / "0" / "._user01_0.npz")
    touch(tmp_path / "tonic" / "ibmGestureTrain" / "user01_led" / "._0.npy")
    for folder in (tmp_path, tmp_path / "tonic"):
        assert [len(part) for part in list_dvsgesture(folder)] == [6, 3]


def test_a_folder_without_a_data_set_says_what_was_looked_for(tmp_path):
    for name, tree in TREES.items():
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            tree.list_recordings(tmp_path, "9:1")
        with pytest.raises(FileNotFoundError, match=name):
            recognise(tmp_path)
    cifar10_tree(tmp_path, "aedat")
    for path in (tmp_path / "dog").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="dog"):
        list_dvscifar10(tmp_path)
    cifar10_tree(tmp_path / "one", "aedat", 1)
    with pytest.raises(FileNotFoundError, match="DVS-CIFAR10 for testing"):
        list_dvscifar10(tmp_path / "one")


def test_there_are_as_many_names_as_classes():
    counts = {name: len(set(tree.classes)) for name, tree in TREES.items()}
    assert counts == {"nmnist": 10, "dvsgesture": 11, "dvscifar10": 10, "ncaltech101": 100, "ncars": 2, "shd": 20}


def test_the_sensor_the_frames_and_the_held_out_share_of_each_data_set():
    found = {name: (tree.sensor, tree.frame_size(), tree.validation_fraction) for name, tree in TREES.items()}
    assert found == {
        "nmnist": ((34, 34), (34, 34), 0.2),
        "dvsgesture": ((128, 128), (48, 48), 0.1),
        "dvscifar10": ((128, 128), (48, 48), 0.1),
        "ncaltech101": ((240, 180), (64, 48), 0.1),
        "ncars": ((120, 100), (60, 50), 0.1),
        "shd": ((700, 1), (140, 1), 0.1),
    }
    assert TREES["dvsgesture"].frame_size(32) == (32, 32)


EVENTS_HERE = [(5, 7, 10, 1), (127, 0, 12, 0), (0, 127, 12, 1), (64, 32, 500, 0)]  # x, y, t, p: upright


def cifar10_file(path, suffix):
    """EVENTS_HERE in a file as the data set's authors or SpikingJelly write it."""
    x, y, t, p = np.array(EVENTS_HERE).T
    if suffix == "aedat":
        touch(path, aedat2(EVENTS_HERE))
    elif suffix == "mat":  # dat2mat.m counts y from below
        touch(path)
        savemat(path, {"out1": np.stack([t, 0 * t, 0 * t, x, 127 - y, p], 1).astype(float)})
    else:  # SpikingJelly's x is the row
        touch(path)
        np.savez(path, t=t, x=y, y=x, p=p)


@pytest.mark.parametrize("suffix", ["aedat", "mat", "npz"])
def test_the_same_recording_of_dvscifar10_is_upright_from_every_kind_of_file(tmp_path, suffix):
    for name in CIFAR10_CLASSES:
        for number in range(10):
            cifar10_file(tmp_path / name / f"cifar10_{name}_{number}.{suffix}", suffix)
    for part in list_dvscifar10(tmp_path):
        events = part[0].load((128, 128)).events
        assert [tuple(map(int, event)) for event in events.tolist()] == EVENTS_HERE


@pytest.mark.parametrize("suffix", ["mat", "npz"])
def test_an_event_beside_the_sensor_is_found_before_the_image_is_turned(tmp_path, suffix):
    path = tmp_path / f"cifar10_dog_0.{suffix}"
    if suffix == "mat":
        savemat(path, {"out1": np.array([[1.0, 0, 0, 5, 128, 1]])})
    else:
        np.savez(path, t=[1], x=[5], y=[128], p=[1])
    turned = {"mat": UPSIDE_DOWN, "npz": TRANSPOSED}[suffix]
    with pytest.raises(EventFormatError, match="expected a pixel of 128x128, got .*128"):
        Recording(path, turned=turned).load((128, 128))


def test_a_transposed_recording_of_a_wide_sensor_is_high_in_its_file(tmp_path):
    np.savez(tmp_path / "a.npz", t=[1, 2], x=[0, 9], y=[19, 3], p=[1, 0])
    events = Recording(tmp_path / "a.npz", turned=TRANSPOSED).load((20, 10)).events
    assert events[["x", "y"]].tolist() == [(19, 0), (3, 9)]


def test_how_a_recording_is_turned_makes_other_frames(tmp_path):
    np.savez(tmp_path / "a.npz", t=[1, 2], x=[0, 9], y=[7, 3], p=[1, 0])
    framing = Framing(1, "count", (10, 10), (10, 10))
    frames = []
    for turned in ("", UPSIDE_DOWN, TRANSPOSED):
        store = FrameStore("a", [Recording(tmp_path / "a.npz", 0, turned=turned)], framing, folder=tmp_path / "cache")
        frames.append(store[[0]][0, 0])
    assert (frames[1] == frames[0][:, ::-1]).all() and (frames[2] == frames[0].transpose(0, 2, 1)).all()


LAYOUTS = {  # where SpikingJelly, tonic and those who unpack archives leave the data sets
    "nmnist": ["", "N-MNIST", "NMNIST/N_MNIST", "extract", "nmnist/extract"],
    "dvsgesture": ["", "DvsGesture", "extract/DvsGesture", "DvsGesture/DvsGesture", "DVS128Gesture"],
    "dvscifar10": ["", "extract", "CIFAR10DVS", "cifar10-dvs/CIFAR10DVS"],
    "ncaltech101": ["", "Caltech101", "extract/Caltech101", "NCALTECH101/Caltech101"],
    "ncars": ["", "Prophesee_Dataset_n_cars", "N-Cars"],
}
WRITE = {
    "nmnist": nmnist_tree,
    "dvsgesture": official_gestures,
    "dvscifar10": lambda path: cifar10_tree(path, "aedat"),
    "ncaltech101": caltech101_tree,
    "ncars": ncars_tree,
}
FOUND = {"nmnist": [30, 20], "dvsgesture": [6, 3], "dvscifar10": [90, 10], "ncaltech101": [900, 100], "ncars": [6, 4]}


@pytest.mark.parametrize(
    "layout",
    [one for name, found in LAYOUTS.items() for one in first_are_fast(((name, inside) for inside in found), 2)],
)
def test_a_data_set_is_found_in_the_folders_that_unpacking_makes(tmp_path, layout):
    name, inside = layout
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    WRITE[name](tmp_path / inside)
    (tmp_path / ".hidden").mkdir()
    parts = TREES[name].list_recordings(tmp_path, "9:1")
    assert [len(part) for part in parts] == FOUND[name]
    assert recognise(tmp_path)[0] == name


@pytest.mark.parametrize("train", ["train", "TRAIN", "Train/Train"])
def test_the_parts_of_nmnist_may_be_spelled_in_any_way(tmp_path, train):
    nmnist_tree(tmp_path / "data")
    (tmp_path / "data" / "Test").rename(tmp_path / "data" / "test")
    (tmp_path / "data" / "Train").rename(tmp_path / "data" / "moved")
    (tmp_path / "data" / train).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / "moved").rename(tmp_path / "data" / train)
    assert [len(part) for part in TREES["nmnist"].list_recordings(tmp_path / "data", "")] == [30, 20]


def test_nmnist_as_spikingjelly_keeps_it_is_not_taken_for_gestures_nor_the_other_way_round(tmp_path):
    for data, classes in (("digits", 10), ("gestures", 11)):
        for part in ("train", "test"):
            for label in range(classes):
                path = tmp_path / data / "events_np" / part / str(label) / "a.npz"
                touch(path)
                np.savez(path, **columns())
    assert recognise(tmp_path / "digits")[0] == "nmnist"
    assert recognise(tmp_path / "gestures")[0] == "dvsgesture"


def test_original_files_are_read_before_those_that_spikingjelly_makes_of_them(tmp_path):
    nmnist_tree(tmp_path / "extract")
    for part in ("train", "test"):
        touch(tmp_path / "events_np" / part / "0" / "a.npz")
    train, _ = TREES["nmnist"].list_recordings(tmp_path, "")
    assert len(train) == 30 and {recording.path.suffix for recording in train} == {".bin"}


def test_original_files_may_be_further_down_than_those_that_spikingjelly_makes_of_them(tmp_path):
    (tmp_path / "extract" / "DvsGesture").mkdir(parents=True)
    official_gestures(tmp_path / "extract" / "DvsGesture")
    spikingjelly_gestures(tmp_path)
    train, _ = TREES["dvsgesture"].list_recordings(tmp_path, "")
    assert len(train) == 6 and {recording.path.suffix for recording in train} == {".aedat"}


def test_the_folder_of_a_class_may_be_spelled_otherwise_and_be_nested(tmp_path):
    cifar10_tree(tmp_path, "aedat4")
    (tmp_path / "dog").rename(tmp_path / "Dog")
    (tmp_path / "cat").rename(tmp_path / "moved")
    (tmp_path / "cat").mkdir()
    (tmp_path / "moved").rename(tmp_path / "cat" / "cat")
    assert [len(part) for part in list_dvscifar10(tmp_path)] == [90, 10]


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_part_is_said_to_be_empty(tmp_path, part):
    nmnist_tree(tmp_path / "nmnist")
    spikingjelly_gestures(tmp_path / "gestures")
    shutil.rmtree(tmp_path / "nmnist" / part.title())
    shutil.rmtree(tmp_path / "gestures" / "events_np" / part)
    for name, folder in (("nmnist", "nmnist"), ("dvsgesture", "gestures")):
        with pytest.raises(FileNotFoundError, match=f"has no recordings for {part}ing"):
            TREES[name].list_recordings(tmp_path / folder, "9:1")


def test_lists_and_labels_may_begin_with_a_byte_order_mark(tmp_path):
    official_gestures(tmp_path)
    for path in (*tmp_path.glob("*.txt"), *tmp_path.glob("*.csv")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    parts = list_dvsgesture(tmp_path)
    assert [len(part) for part in parts] == [6, 3] and not any(one.problem for part in parts for one in part)


def test_a_list_of_no_trials_is_an_empty_part(tmp_path):
    official_gestures(tmp_path)
    touch(tmp_path / "trials_to_test.txt", b"")
    with pytest.raises(FileNotFoundError, match="has no recordings for testing .in trials_to_test.txt"):
        list_dvsgesture(tmp_path)


def test_ncaltech101_has_its_first_images_for_training_and_no_background(tmp_path):
    caltech101_tree(tmp_path)
    touch(tmp_path / "yin_yang" / "image_0020.bin")
    for split, last in (("9:1", 9), ("7:3", 7)):
        train, test = TREES["ncaltech101"].list_recordings(tmp_path, split)
        assert [int(one.path.stem[-4:]) for one in train if one.label == 0] == [*range(1, last + 1)]
        assert [int(one.path.stem[-4:]) for one in test if one.label == 0] == [*range(last + 1, 11)]
        assert {one.label for one in train} == {one.label for one in test} == set(range(100))
    assert [int(one.path.stem[-4:]) for one in test if one.label == 99] == [20]
    assert len(train[0].load((240, 180)).events) == 4


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("n-cars_train", "n-cars_test"),
        ("n-cars_train/train", "n-cars_test/test"),
        ("ncars-train", "ncars-test"),
        ("train", "test"),
    ],
)
def test_every_layout_of_ncars_has_its_official_parts(tmp_path, train, test):
    ncars_tree(tmp_path, train, test)
    touch(tmp_path / train / "labels" / "obj_000000.dat")
    parts = TREES["ncars"].list_recordings(tmp_path, "")
    assert [[recording.label for recording in part] for part in parts] == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1]]
    assert {recording.path.parts[len(tmp_path.parts)] for recording in parts.train} == {train.split("/")[0]}
    assert recognise(tmp_path)[0] == "ncars"
