"""The folders in which the event data sets are published: every layout gives the same recordings and splits."""

import shutil

import pytest

from tests.tools.data.events.written import (
    cifar10_tree,
    nmnist_tree,
    official_gestures,
    spikingjelly_gestures,
    tonic_gestures,
    touch,
)
from tools.data.events.frames import Framing
from tools.data.events.reading import EventFormatError
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
    with pytest.raises(FileNotFoundError, match="has no {Train,Test}"):  # half a data set is none
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
    with pytest.raises(FileNotFoundError, match="for training and for testing"):
        list_dvscifar10(tmp_path / "one")


def test_there_are_as_many_names_as_classes():
    counts = {name: len(set(tree.classes)) for name, tree in TREES.items()}
    assert counts == {"nmnist": 10, "dvsgesture": 11, "dvscifar10": 10}


def test_the_sensor_the_frames_and_the_held_out_share_of_each_data_set():
    found = {name: (tree.sensor, tree.frame_size(), tree.validation_fraction) for name, tree in TREES.items()}
    assert found == {
        "nmnist": ((34, 34), (34, 34), 0.2),
        "dvsgesture": ((128, 128), (48, 48), 0.1),
        "dvscifar10": ((128, 128), (48, 48), 0.1),
    }
    assert TREES["dvsgesture"].frame_size(32) == (32, 32)
