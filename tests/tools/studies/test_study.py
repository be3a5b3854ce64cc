"""Studies: results that repeat, are completed and not mixed, and what the command line makes of errors."""

import dataclasses
import functools
import json
import logging
import os
import signal

import numpy as np
import pytest
import torch

from tools import cli
from tools.errors import UserError
from tools.studies.study import ONE_THREAD, Study, rounded, run_study


def square(number):
    return number * number, torch.get_num_threads()


def squares(numbers):
    return [functools.partial(square, number) for number in numbers]


def failing(job):
    raise ValueError(f"job {job} is wrong")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_error_of_a_job_is_raised(tmp_path, workers):
    with pytest.raises(ValueError, match="job 5 is wrong"):
        Study(tmp_path, workers=workers).map([functools.partial(failing, job) for job in (5, 6)], "failures")


def dying():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_ended_from_outside_is_told(tmp_path):
    with pytest.raises(ChildProcessError, match="killed from outside during 'deaths'; .* --workers 1"):
        Study(tmp_path, workers=2).map([dying, dying], "deaths")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_jobs_are_done_in_order_and_in_groups_by_one_thread_each(tmp_path, workers, monkeypatch, request):
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    for variable in ONE_THREAD:
        monkeypatch.setenv(variable, "2")
    found = Study(tmp_path, workers=workers).map_groups({"a": squares([3, 1]), "b": squares([2]), "c": []}, "squares")
    assert found == {"a": [(9, 1), (1, 1)], "b": [(4, 1)], "c": []}
    assert torch.get_num_threads() == 2


def test_seeds_differ_between_studies_purposes_and_repetitions(tmp_path):
    found = []
    for seed in (0, 3, 2**63):
        for purpose in ("one", "two"):
            seeds = Study(tmp_path, seed).seeds(purpose, full=5, quick=2)
            assert Study(tmp_path, seed, quick=True).seeds(purpose, full=5, quick=2) == seeds[:2]
            found += seeds
    assert len(set(found)) == len(found) == 30
    assert max(found) > 2**31
    for seed in found:
        np.random.RandomState(seed)  # which takes the narrowest range of all generators


def test_results_are_completed_and_not_mixed(tmp_path):
    experiments = {"one": lambda study: {"value": study.seed}, "two": lambda study: {"value": [np.float32(1 / 3)]}}
    options = dict(seed=4, quick=True, workers=1, out=str(tmp_path / "out"))
    folder, content = run_study("test", experiments, only=["two"], **options)
    assert content["experiments"] == {"two": {"value": [0.33333]}}
    run_study("test", experiments, only=["one", "one"], **options)
    whole = json.loads((folder / "results.json").read_text())
    assert whole["experiments"] == {"two": {"value": [0.33333]}, "one": {"value": 4}}
    assert whole["seed"] == 4 and whole["quick"] and "torch" in whole["made_by"]["one"]
    with pytest.raises(UserError, match="'seed': 4.*not of .*'seed': 5.*--out"):
        run_study("test", experiments, **{**options, "seed": 5})
    with pytest.raises(UserError, match="unknown experiment 'three'; choose from one, two"):
        run_study("test", experiments, only=["three"], **options)
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the results of a study"):
        run_study("test", experiments, **options)


def test_a_study_without_a_folder_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (run_study("test", {"one": lambda study: {}}, seed=0, quick=True)[0] for _ in range(2))
    assert first != second and first.resolve().parent == second.resolve().parent == tmp_path / "results" / "test"


def test_numbers_are_rounded_and_what_is_none_is_null():
    @dataclasses.dataclass
    class Record:
        mean: float

    assert rounded([Record(0.1234567)]) == [{"mean": 0.12346}]
    value = {"a": torch.tensor([1.23456789, float("nan")]), 2: (np.int64(3), True, np.inf), "t": "text", "n": None}
    assert rounded(value) == {"a": [1.2346, None], "2": [3, True, None], "t": "text", "n": None}


def test_the_command_line(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    experiments = {"one": lambda study: {"workers": study.workers}}

    def chosen(arguments):
        return experiments

    arguments = ["--quick", "--seed", "3", "--workers", "2", "--out", str(tmp_path / "a")]
    _, content = cli.study("test", "A test.", chosen, arguments)
    assert content["experiments"] == {"one": {"workers": 2}} and "one (1 of 1)" in caplog.text
    with pytest.raises(SystemExit) as error:
        cli.study("test", "A test.", chosen, [*arguments, "--only", "two"])
    assert error.value.code == 1 and "unknown experiment 'two'" in caplog.text
    with pytest.raises(SystemExit) as error:
        cli.study("test", "A test.", chosen, ["--workers", "-1"])
    assert error.value.code == 2
