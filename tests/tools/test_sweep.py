"""Sweeps: combinations, what is left to do, the table; and a real one, where Ray is installed."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import lines_of
from tools import sweep
from tools.errors import UserError
from tools.training.folder import read_metrics
from tools.training.result import RunResult, read_result, write_result

slow = pytest.mark.slow


def test_all_combinations_each_with_a_folder_of_its_own(tmp_path):
    settings = sweep.parse_settings(["config=configs/a.yaml,configs/b.yaml", "sigma=0.1,0.3", "seed=0,1"])
    combinations = sweep.combinations(settings)
    assert len(combinations) == 8 and combinations[-1] == {"config": "configs/b.yaml", "sigma": "0.3", "seed": "1"}
    folders = {sweep.run_folder(tmp_path, combination) for combination in combinations}
    assert len(folders) == 8 and tmp_path / "runs" / "config=configs-a,seed=0,sigma=0.1" in folders


@pytest.mark.parametrize("texts", [["config=a/b.yaml,a-b"], ["run_dir=a,b"], ["resume=auto"], ["seed=1", "seed=2"]])
def test_combinations_that_would_share_a_folder_are_refused(texts):
    with pytest.raises(UserError):
        sweep.parse_settings(texts)


def test_the_order_of_settings_does_not_matter(tmp_path):
    combination = {"seed": "0", "sigma": "0.1"}
    assert sweep.run_folder(tmp_path, combination) == sweep.run_folder(tmp_path, dict(reversed(combination.items())))


@pytest.mark.parametrize("wrong", [["sigma"], ["sigma=0.1,"], ["=1"], ["a=1,1"], ["a=1", "a=2"]])
def test_wrong_settings_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        sweep.parse(["folder", *(f"--vary={text}" for text in wrong), "--", "main_mnist5k.py"])
    assert "--vary" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.parse(["folder", "--vary", "sigma=1", "--", "main_nosuch.py"])


def complete(folder, combination, accuracy):
    run = sweep.run_folder(folder, combination)
    run.mkdir(parents=True)
    write_result(run, RunResult(epoch=1, val_accuracy=0.5, loss=1.0, accuracy=accuracy))


def test_the_table_is_over_seeds_and_knows_what_is_missing(tmp_path):
    settings = sweep.parse_settings(["sigma=0.1,0.3", "seed=0,1"])
    for combination, accuracy in zip(sweep.combinations(settings), (0.8, 0.9, 0.7)):
        complete(tmp_path, combination, accuracy)
    rows = sweep.summarise(tmp_path, settings)
    assert [row.seeds for row in rows] == [2, 1]
    assert rows[0].mean == pytest.approx(0.85) and rows[0].std == pytest.approx(0.0707, abs=1e-4)
    assert rows[1] == sweep.Row({"sigma": "0.3"}, 1, 0.7, None)
    assert sweep.table(rows) == ["sigma  seeds  test accuracy, %", "0.1    2      85.00 +- 7.07", "0.3    1      70.00"]


def test_a_sweep_of_several_settings_is_drawn_and_written_for_spreadsheets(tmp_path, monkeypatch, figures):
    argv = [str(tmp_path), "--vary", "sigma=0.1,0.3", "--vary", "config=a.yaml,b.yaml", "--", "main_mnist5k.py"]
    arguments = sweep.parse(argv)
    for combination in sweep.combinations(arguments.vary):
        complete(tmp_path, combination, 0.5 + float(combination["sigma"]))
    monkeypatch.setattr(sweep, "run_sweep", lambda arguments: [])
    sweep.main(argv)
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[:2] == ["sigma,config,seeds,accuracy_mean,accuracy_std", "0.1,a.yaml,1,0.600000,"] and len(lines) == 5
    shown = lines_of(figures["sweep.png"].axes[0])
    for config in ("a.yaml", "b.yaml"):
        assert shown[f"config {config}"] == ([0.1, 0.3], pytest.approx([60, 80]))


@pytest.mark.parametrize("start", [["tools/sweep.py"], ["-m", "tools.sweep"]])
def test_it_runs_as_a_file_and_as_a_module(repository, start):
    done = subprocess.run([sys.executable, *start, "--help"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and "--vary" in done.stdout, done.stderr


@pytest.fixture
def forked(monkeypatch):
    """Scripts run in forks of this process, which spares the imports."""

    def run(arguments, cwd, env=os.environ, stdout=None, **options):
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if child == 0:
                try:
                    sys.stdout = sys.stderr = stdout or said
                    sys.argv = arguments[1:]
                    sys.path[:0] = [str(Path(arguments[1]).parent)]
                    os.chdir(cwd)
                    os.environ |= env
                    os._exit(_run_main(arguments[1]))
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            said.seek(0)
            return SimpleNamespace(returncode=os.waitstatus_to_exitcode(status), stderr=said.read())

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))


def _run_main(path):
    """Run a script and return the exit code that Python would have, with its last words in `sys.stderr`."""
    try:
        runpy.run_path(path, run_name="__main__")
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code)
        return 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def test_a_folder_has_one_sweep(tmp_path):
    sweep.check_same(tmp_path, {"command": ["a"], "vary": {"sigma": ["1"]}})
    sweep.check_same(tmp_path, {"command": ["a"], "vary": {"sigma": ["1"]}})
    with pytest.raises(UserError, match="has another sweep"):
        sweep.check_same(tmp_path, {"command": ["b"], "vary": {"sigma": ["1"]}})
    (tmp_path / "sweep.json").write_text('{"command": ')
    with pytest.raises(UserError, match="sweep.json is not the definition of a sweep; delete it"):
        sweep.check_same(tmp_path, {"command": ["a"], "vary": {"sigma": ["1"]}})


def test_a_run_that_fails_says_why(tmp_path):
    (tmp_path / "main.py").write_text("import sys\nprint(sys.argv[1:], 'are refused', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(RuntimeError, match=r"(?s)sigma=-1 ended with code 2.*--sigma.*-1.*are refused"):
        sweep.run_combination(tmp_path, [str(tmp_path / "main.py")], {"sigma": "-1"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("sigmaa=0.1", r"sigmaa=0.1: unknown argument --sigmaa; did you mean --sigma\?"),
        ("sigma=0.1,a", r"sigma=a: argument --sigma: invalid float value: 'a'"),
        ("sigma=0.1,-1", r"sigma=-1: sigma must be at least 1e-06, got -1.0"),
        ("config=configs/nosuch.yaml", r"config=configs-nosuch: .*nosuch.yaml.*"),
        ("roll=1", r"roll=1: --roll has no meaning for mnist5k, which has images"),
    ],
)
def test_a_setting_that_the_script_refuses_is_one_line_before_ray_starts(wrong, message, forked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(tune=None))  # which cannot run anything
    argv, words = [str(tmp_path), "--vary", wrong, "--", "main_mnist5k.py"], list(sys.argv)
    with pytest.raises(SystemExit, match=f"^error: {message}$"):
        sweep.main(argv)
    assert sys.argv == words and not list(tmp_path.iterdir())  # the same folder can have the right sweep


@slow
@pytest.mark.parametrize("command", [["main_theory.py"], ["testing_mnist5k.py"], ["main_mnist5k.py", "--help"]])
def test_a_script_that_would_not_train_is_refused(command, forked, tmp_path):
    with pytest.raises(UserError, match="^seed=1: "):
        sweep.check_flags(tmp_path, command, {"seed": "1"})


@slow
def test_settings_that_the_script_takes_are_checked_without_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    combination = {"config": "configs/mnist5k_nsnn.yaml", "sigma": "0.1"}
    sweep.check_flags(tmp_path, ["main_mnist5k.py", "--epochs", "10"], combination)
    assert not list(tmp_path.iterdir())


def test_complete_runs_are_not_repeated(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(tune=None))  # which cannot run anything
    arguments = sweep.parse([str(tmp_path), "--vary", "seed=0,1", "--", "main_mnist5k.py"])
    for combination in sweep.combinations(arguments.vary):
        complete(tmp_path, combination, 0.9)
    with caplog.at_level("INFO"):
        assert sweep.run_sweep(arguments) == []
    assert "2 of 2 runs are done" in caplog.text


ENDED = """
import os
from tools.training.run import Training

original = Training.between_steps

def between_steps(self, epoch, progress, check):
    if "ENDED" in os.environ and epoch == 2:
        os._exit(3)
    if "ENDED" not in os.environ and epoch == 1:
        raise RuntimeError("this epoch was complete")
    original(self, epoch, progress, check)

Training.between_steps = between_steps
"""


def test_a_run_that_was_ended_goes_on(script, forked, tmp_path, monkeypatch):
    main, combination = tmp_path / "main_stripes.py", {"sigma": "0.4"}
    main.write_text(ENDED + main.read_text())
    command = [str(main), "--model", "toynet", "--epochs", "2", "--no-histograms", "--threads", "1", "--device", "cpu"]
    monkeypatch.setenv("ENDED", "yes")
    with pytest.raises(RuntimeError, match="sigma=0.4 ended with code 3"):
        sweep.run_combination(tmp_path, command, combination)
    monkeypatch.delenv("ENDED")
    result = sweep.run_combination(tmp_path, command, combination)
    folder = sweep.run_folder(tmp_path, combination)
    assert result == read_result(folder)
    assert [row["epoch"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert yaml.safe_load((folder / "config.yaml").read_text())["sigma"] == 0.4


# What a sweep knows of a script: its flags, that it ends with code 0, and its test.json.
RUN = """
import argparse, os, time
from pathlib import Path
from tools.training.result import RunResult, write_result

parser = argparse.ArgumentParser()
for name in ("run_dir", "sigma", "resume"):
    parser.add_argument(f"--{name}", required=True)
given = parser.parse_args()
folder = Path(given.run_dir)
assert Path("main_mnist5k.py").exists()  # in the repository
with open(folder / "starts", "a") as file:
    print(os.getpid(), file=file)
if given.sigma == "0.2" and len((folder / "starts").read_text().splitlines()) == 1:
    time.sleep(1000)
write_result(folder, RunResult(1, 0.5, 1.0, float(given.sigma)))
"""


@slow
def test_a_sweep_on_this_machine_is_stopped_and_goes_on(tmp_path, repository):
    pytest.importorskip("ray")
    folder = tmp_path / "sweep"
    (tmp_path / "main.py").write_text(RUN)
    one_by_one = ["--cpus", str(os.cpu_count())]  # the second run has not begun when the sweep is stopped
    command = [sys.executable, "-m", "tools.sweep", folder, *one_by_one, "--vary", "sigma=0.2,0.4", "--"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    environment["RAY_USE_MULTIPROCESSING_CPU_COUNT"] = "1"  # those of os.cpu_count, in a container too
    options = dict(cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen([*command, tmp_path / "main.py"], **options)
    while not (starts := [path.read_text() for path in folder.glob("runs/*/starts")]) or not starts[0].endswith("\n"):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert not list(folder.glob("runs/*/test.json"))
    until = time.monotonic() + 100  # a run that does not end with the sweep sleeps longer
    while sys.platform == "linux" and Path(f"/proc/{starts[0].strip()}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    done = subprocess.run([*command, tmp_path / "main.py"], **options)
    assert done.returncode == 0, done.stdout
    counts = {path.parent.name: len(path.read_text().splitlines()) for path in folder.glob("runs/*/starts")}
    assert counts == {"sigma=0.2": 2, "sigma=0.4": 1}
    assert "sigma  seeds  test accuracy, %" in done.stdout.splitlines()
    assert (folder / "sweep.csv").exists() and (folder / "sweep.png").exists()


TRAINED = "\ntrain(DATASETS['mnist5k'], {'epochs': 1})\n"
SCRIPTS = {
    "directly": f"from dataset_utils import DATASETS\nfrom tools.cli import train{TRAINED}",
    "on several lines": f"from helper import DATASETS\nfrom tools import (\n    cli,\n)\ntrain = cli.train{TRAINED}",
    "by a module": f"from helper import DATASETS, train{TRAINED}",
    "in another encoding": f"# -*- coding: latin-1 -*-\n# caf\xe9\nfrom helper import DATASETS, train{TRAINED}",
    "in a study": "from tools.cli import study\nflags = lambda parser: [parser.add_argument(f'--{name}') for name in "
    "('lr', 'run_dir', 'resume')]\nstudy('own', 'own', lambda given: 1 / 0, more_flags=flags)\n",
}


@pytest.fixture
def own_script(tmp_path, monkeypatch, repository):
    """A function that checks a script outside of the repository, which Python finds by PYTHONPATH."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    (tmp_path / "helper.py").write_text("from dataset_utils import DATASETS\nfrom tools.cli import train\n")

    def check(text, **combination):
        (tmp_path / "mine.py").write_bytes(text.encode("latin-1"))
        sweep.check_flags(tmp_path, [str(tmp_path / "mine.py")], combination)

    return check


@slow
@pytest.mark.parametrize("imports", SCRIPTS)
def test_a_script_of_ones_own_is_checked_up_to_its_training(imports, own_script, forked, tmp_path):
    own_script(SCRIPTS[imports], lr="0.1")
    with pytest.raises(UserError, match="^nosuch=1: .*--nosuch"):
        own_script(SCRIPTS[imports], nosuch="1")
    assert {path.name for path in tmp_path.iterdir()} <= {"helper.py", "mine.py", "__pycache__"}


@slow
def test_a_script_neither_catches_the_end_of_its_check_nor_cleans_up_after_it(own_script, tmp_path):
    leave = f"open({str(tmp_path / 'left')!r}, 'w')"
    caught = f"try:\n    {TRAINED.strip()}\nexcept BaseException:\n    {leave}\nfinally:\n    {leave}\n"
    own_script(f"from dataset_utils import DATASETS\nfrom tools.cli import train\n{caught}", lr="0.1")
    assert not (tmp_path / "left").exists()


def test_a_script_that_only_speaks_of_the_command_line_is_not_run(own_script):
    own_script("# as in tools.cli\nraise SystemExit('it has run')\n", lr="0.1")
    own_script("text = 'from tools import cli'\nraise SystemExit('it has run')\n", lr="0.1")
    with pytest.raises(UserError, match="mine.py: .* was never closed"):
        own_script("from tools.cli import train\ntrain(\n", lr="0.1")


@slow
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("raise SystemExit('no data in /x')", "no data in /x"),
        ("raise SystemExit", ".*mine.py ends with code 0 before it trains"),
        ("import nosuch", "ModuleNotFoundError: No module named 'nosuch'"),
    ],
)
def test_a_script_that_ends_before_its_training_says_why(end, message, own_script, forked):
    with pytest.raises(UserError, match=f"^lr=0.1: {message}$"):
        own_script(f"import tools.cli\n{end}\n", lr="0.1")


@slow
def test_a_script_is_checked_by_a_process_of_its_own(own_script, monkeypatch):
    """The others of these tests let a fork check, which need not import anything."""
    said = "import logging\nimport warnings\nwarnings.warn('old')\nlogging.warning('slow disk')\n"
    with pytest.raises(UserError, match="^lr=0.1: no data in /x$"):
        own_script(f"import tools.cli\n{said}raise SystemExit('no data in /x')", lr="0.1")
    monkeypatch.delenv("PYTHONPATH")  # it finds what a run would find
    with pytest.raises(UserError, match="No module named 'tools'"):
        own_script("import tools.cli\n", lr="0.1")
