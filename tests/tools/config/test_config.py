"""Recipes and flags: precedence, checks, and messages that help."""

import dataclasses
import re

import pytest
import yaml

from crits import LOSSES, REGULARIZERS
from dataset_utils import DATASETS
from tests import fresh
from tools.config.evaluate import NETWORK_SETTINGS, EvaluationConfig
from tools.config.fields import GROUPS, settings
from tools.config.parsing import checked, parse
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.perturb import applicable


@dataclasses.dataclass
class Data:
    """What the parser asks of a data set."""

    name: str = "mnist5k"
    has_pixels: bool = True


IMAGES, EVENTS = Data(), Data("nmnist", False)


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_flags_override_the_recipe_and_the_recipe_the_defaults_of_the_script(tmp_path):
    path = recipe(tmp_path, "epochs: 7\nlr: 0.5\n")
    config, given = parse(TrainConfig, ["--config", path, "--lr", "0.25"], {"epochs": 3, "width": 0.5, "lr": 0.1})
    assert (config.epochs, config.width, config.lr) == (7, 0.5, 0.25)
    assert given == {"epochs", "lr"}


@pytest.mark.parametrize("spelling", ["--weight_decay", "--weight-decay"])
def test_flags_can_be_typed_with_either_dash(spelling):
    assert parse(TrainConfig, [spelling, "0.5"])[0].weight_decay == 0.5
    assert parse(TrainConfig, [f"{spelling}=0.5"])[0].weight_decay == 0.5


def test_boolean_flags_have_a_negative():
    assert parse(TrainConfig, ["--flip"])[0].flip
    assert not parse(TrainConfig, ["--no-flip"], {"flip": True})[0].flip
    assert not parse(TrainConfig, ["--no-plot-spike-rate"], {"plot_spike_rate": True})[0].plot_spike_rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", "did you mean 'epochs'"),
        ("wieght_decay: 3", "did you mean 'weight_decay'"),
        ("model: resnet50", "sresnet18"),
        ("epochs: many", "epochs must be int, got 'many'"),
        ("epochs: 1.5", "epochs must be int"),
        ("flip: 1", "flip must be bool"),
        ("epochs: true", "epochs must be int"),
        ("lr: fast", "lr must be float"),
        ("lr: .inf", "lr must be finite"),
        ("sigma: -0.1", "sigma must be at least"),
        ("minibatch: 0", "minibatch must be at least 1"),
        ("lambda_tet: 1.5", "lambda_tet must be at most 1"),
        ("label_smoothing: 1", "label_smoothing must be below 1"),
        ("crop_padding: 1000000", "crop_padding must be at most 1000"),
        ("dataset: cifar10", "is for the data set 'cifar10', this script is for 'mnist5k'"),
        ("- 1\n- 2", "key: value"),
        ("a: [", "not valid YAML: line 1: "),
        ("epochs: 3\nlr: 1e-3: 4", "not valid YAML: line 2: mapping values are not allowed here"),
        ("epochs: 3\nlr: 'a\n", "not valid YAML: line 3: "),
        ("epochs: 3 \x00", "not valid YAML: unacceptable character"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("epochs: 3\nlr: 1e-3\n'epochs': 4", "has 'epochs' twice, in lines 1 and 3"),
        ("roll: 1", "--roll has no meaning for mnist5k"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_says_what_is_wrong(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, ["--config", recipe(tmp_path, text)], dataset=IMAGES)
    assert stop.value.code == 2
    _, said = capsys.readouterr().err.split(": error: ")
    assert said.count("\n") == 1 and message in said and f"recipe {tmp_path / 'recipe.yaml'}" in said


def test_a_message_names_the_recipe_only_if_the_value_is_from_it(tmp_path, capsys):
    path = recipe(tmp_path, "sigma: 0.2\n")
    assert "recipe" not in refused(capsys, TrainConfig, ["--config", path, "--sigma", "-1"])
    assert "recipe" not in refused(capsys, TrainConfig, ["--config", path, "--roll", "1"], dataset=IMAGES)


@pytest.mark.parametrize(
    "flags", [["--model", "resnet50"], ["--epochs", "x"], ["--sigma", "0"], ["--epoch", "3"], ["--config", "no.yaml"]]
)
def test_wrong_flags_are_errors(flags):
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, flags)
    assert stop.value.code == 2


def test_numbers_that_yaml_reads_as_strings_or_integers_can_be_floats(tmp_path):
    config, _ = parse(TrainConfig, ["--config", recipe(tmp_path, "lr: 1e-3\nsigma: 1\n")])
    assert (config.lr, config.sigma) == (1e-3, 1.0)
    assert isinstance(config.sigma, float)


@pytest.mark.parametrize("key", ["reg", "amp"])
def test_an_unquoted_no_of_yaml_is_the_choice_no(tmp_path, key):
    config, _ = parse(TrainConfig, ["--config", recipe(tmp_path, f"{key}: no")])
    assert getattr(config, key) == "no"


def test_a_list_of_perturbations_is_checked_item_by_item(tmp_path):
    assert parse(EvaluationConfig, ["--perturbation", "sp", "membrane"])[0].perturbation == ["sp", "membrane"]
    assert parse(EvaluationConfig, ["--config", recipe(tmp_path, "perturbation: sp")])[0].perturbation == ["sp"]
    with pytest.raises(SystemExit):
        parse(EvaluationConfig, ["--config", recipe(tmp_path, "perturbation: [sp, pepper]")])


def test_every_recipe_of_the_project_is_valid_and_has_a_script(repository):
    recipes = sorted((repository / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        dataset = yaml.safe_load(path.read_text())["dataset"]
        assert (repository / f"main_{dataset}.py").exists()
        parse(TrainConfig, ["--config", str(path)], dataset=DATASETS[dataset])


def test_published_flag_names_are_there():
    names = (
        "model neuron lr epochs minibatch timestep threshold tau sigma alpha weight_decay seed workers optim scheduler "
        "reg lambda1 init plot_spike_rate tet lambda_tet resume debug nobn"
    )
    assert set(names.split()) <= set(TrainConfig.__dataclass_fields__)
    names = "snapshot n_ensembles perturbation gaussian_sigma sp_alpha range left right step"
    assert set(names.split()) <= set(EvaluationConfig.__dataclass_fields__)


def refused(capsys, config_class, argv, **options):
    """The last line of the message with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(config_class, argv, **options)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("flag", "nearest"), [("--epoch", "epochs"), ("--weight-decy", "weight_decay")])
def test_an_unknown_flag_is_told_the_nearest_one(capsys, flag, nearest):
    assert refused(capsys, TrainConfig, [flag, "3"]).endswith(f"did you mean --{nearest}?")


@pytest.mark.parametrize(
    ("config_class", "dataset", "flags"),
    [
        (TrainConfig, IMAGES, ["--roll", "3"]),
        (TrainConfig, IMAGES, ["--event-drop"]),
        (TrainConfig, IMAGES, ["--frame_size=8"]),
        (TrainConfig, IMAGES, ["--lenient"]),
        (TrainConfig, EVENTS, ["--crop_padding", "2"]),
        (EvaluationConfig, EVENTS, ["--attack_preset", "quick"]),
        (EvaluationConfig, EVENTS, ["--sp_alpha", "0.2"]),
        (EvaluationConfig, IMAGES, ["--drop_p", "0.2"]),
        (EvaluationConfig, IMAGES, ["--split", "7:3"]),
    ],
)
def test_a_setting_that_the_data_set_does_not_know_is_not_offered_and_refused(
    tmp_path, capsys, config_class, dataset, flags
):
    name = flags[0][2:].partition("=")[0].replace("-", "_")
    other = EVENTS if dataset is IMAGES else IMAGES
    for shown_for, is_shown in ((dataset, False), (other, True)):
        with pytest.raises(SystemExit):
            parse(config_class, ["--help"], dataset=shown_for)
        assert (f"  --{name}" in capsys.readouterr().out) == is_shown
    message = f"--{name} has no meaning for {dataset.name}, which has {'images' if dataset is IMAGES else 'events'}"
    assert refused(capsys, config_class, flags, dataset=dataset).endswith(message)
    value = getattr(parse(config_class, flags, dataset=other)[0], name)
    written = recipe(tmp_path, yaml.safe_dump({name: value}))
    assert refused(capsys, config_class, ["--config", written], dataset=dataset).endswith(message)
    neutral = recipe(
        tmp_path, yaml.safe_dump({} if name in ("attack_preset", "split") else {name: getattr(config_class(), name)})
    )
    parse(config_class, ["--config", neutral], dataset=dataset)


@pytest.mark.parametrize(
    ("config_class", "dataset", "flags"),
    [
        (TrainConfig, IMAGES, ["--roll", "0"]),
        (TrainConfig, EVENTS, ["--no-autoaugment"]),
        (EvaluationConfig, IMAGES, ["--drop_p", "0.3"]),
    ],
)
def test_a_flag_of_the_other_kind_of_data_is_refused_even_at_its_default(capsys, config_class, dataset, flags):
    assert f"has no meaning for {dataset.name}" in refused(capsys, config_class, flags, dataset=dataset)


def test_the_configuration_of_a_run_is_a_recipe_for_its_data_set(tmp_path):
    for dataset in (IMAGES, EVENTS):
        config, _ = parse(TrainConfig, ["--lr", "0.5"], dataset=dataset)
        path = recipe(tmp_path, yaml.safe_dump({"dataset": dataset.name, **dataclasses.asdict(config)}))
        assert parse(TrainConfig, ["--config", path], dataset=dataset)[0] == config


@pytest.mark.parametrize("config_class", [TrainConfig, EvaluationConfig])
def test_help_has_every_flag_under_a_heading(capsys, config_class):
    with pytest.raises(SystemExit):
        parse(config_class, ["--help"])
    shown = capsys.readouterr().out
    headings = [line[:-1] for line in shown.splitlines() if line and line[0] != " " and line.endswith(":")]
    assert headings[0] == "options" and headings[1:] == [title for title in GROUPS if title in headings]
    assert {"network", "neuron and noise", "event data", "data", "run"} <= set(headings)
    assert all(f"  --{name}" in shown for name in settings(config_class))


@pytest.mark.parametrize(
    ("dataset", "offered", "others"), [(IMAGES, "add_gaussian", "eventdrop"), (EVENTS, "eventdrop", "add_gaussian")]
)
def test_help_offers_the_perturbations_that_the_data_set_accepts(capsys, dataset, offered, others):
    with pytest.raises(SystemExit):
        parse(EvaluationConfig, ["--help"], dataset=dataset)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --perturbation [{")]
    names = line.partition("{")[2].partition("}")[0].split(",")
    assert {"membrane", offered} <= set(names) and others not in names
    assert names == ["all", "published", *applicable(dataset.has_pixels)]
    with pytest.raises(SystemExit):
        parse(EvaluationConfig, ["--help"])
    assert f",{others}," in capsys.readouterr().out  # for any data set


def test_settings_of_the_network_can_be_overridden_in_an_evaluation():
    ours, theirs = settings(TrainConfig), settings(EvaluationConfig)
    assert {"model", "neuron", "timestep", "sigma", "amp", "frame_size", "split"} <= set(NETWORK_SETTINGS)
    assert not {"init", "detach_reset", "learnable_scale", "lr", "roll"} & set(NETWORK_SETTINGS)
    for name in NETWORK_SETTINGS:
        assert getattr(EvaluationConfig(), name) is None
        assert dataclasses.replace(theirs[name], default=ours[name].default) == ours[name]
    config, given = parse(EvaluationConfig, ["--sigma", "0.5", "--no-nobn"])
    assert (config.sigma, config.nobn, config.tau, given) == (0.5, False, None, {"sigma", "nobn"})
    with pytest.raises(SystemExit):
        parse(EvaluationConfig, ["--sigma", "0"])


def test_the_loss_is_chosen_by_name_and_tet_by_its_old_flag_too(tmp_path, capsys):
    assert settings(TrainConfig)["loss"].allowed() == tuple(LOSSES)
    assert settings(TrainConfig)["reg"].allowed() == ("no", *REGULARIZERS)
    assert TrainConfig().loss == "rate"
    for argv in (["--tet"], ["--loss", "tet"], ["--config", recipe(tmp_path, "tet: true")]):
        assert parse(TrainConfig, argv)[0].loss == "tet"
    assert checked(TrainConfig, {"tet": True}, "old.pth").loss == "tet"  # of before there was `loss`
    assert parse(TrainConfig, ["--loss", "per_step"])[0].loss == "per_step"
    for argv in (["--tet", "--loss", "per_step"], ["--tet", "--loss", "rate"], ["--no-tet", "--loss", "tet"]):
        assert "contradict" in refused(capsys, TrainConfig, argv)
    with pytest.raises(UserError, match="old.pth: --tet and --loss rate contradict"):
        checked(TrainConfig, {"tet": True, "loss": "rate"}, "old.pth")


def test_a_loss_that_contradicts_tet_is_refused_in_python_too():
    for loss in sorted(LOSSES.keys() - {"rate", "tet"}):
        with pytest.raises(UserError, match=f"--tet and --loss {loss} contradict each other"):
            TrainConfig(tet=True, loss=loss)
        with pytest.raises(UserError, match="contradict each other"):
            dataclasses.replace(TrainConfig(loss="tet"), loss=loss)
    for given in ({"tet": True}, {"loss": "tet"}, {"tet": True, "loss": "tet"}):
        config = dataclasses.replace(TrainConfig(**given), lr=0.1)
        assert (config.loss, config.tet) == ("tet", True)


@pytest.mark.parametrize(
    ("text", "flags", "loss"),
    [
        ("tet: true", ["--loss", "rate"], "rate"),
        ("{tet: true, loss: tet}", [], "tet"),
        ("{tet: true, loss: tet}", ["--no-tet"], "rate"),
        ("{tet: true, loss: tet}", ["--loss", "per_step"], "per_step"),
        ("{tet: false, loss: tet}", [], "tet"),  # of a run with --loss tet
        ("{tet: false, loss: rate}", ["--tet"], "tet"),
        ("loss: per_step", ["--tet"], "tet"),
        ("loss: per_step", ["--no-tet"], "per_step"),
    ],
)
def test_a_higher_layer_replaces_the_loss_of_a_lower_one_however_it_is_said(tmp_path, text, flags, loss):
    config, _ = parse(TrainConfig, ["--config", recipe(tmp_path, text), *flags])
    assert (config.loss, config.tet) == (loss, loss == "tet")


def test_values_of_a_file_are_checked_and_errors_name_it():
    assert checked(TrainConfig, {"lr": "1e-3", "reg": False}, "a.pth").lr == 1e-3
    for values, message in (
        ({"lr": "fast"}, "a.pth: lr must be float"),
        ({"width": 1e9}, "a.pth: width must be at most"),
        ({"loss": "mse"}, "a.pth: loss must be one of .*rate, per_step, tet.*; got 'mse'"),
    ):
        with pytest.raises(UserError, match=message):
            checked(TrainConfig, values, "a.pth")


HEAVY = ["torchvision", "mlxtend", "pandas", "scipy", "sklearn", "matplotlib", "tensorboard", "PIL", "sympy"]
HEAVY += ["torch._dynamo", "tools.attacks", "tools.perturb", "tools.evaluation.run", "tools.training.run"]


def test_wrong_flags_need_nothing_that_runs():
    """Nor do configurations and data sets. That --help does not, either, is in tests/test_scripts.py."""
    code = "import sys, dataset_utils, tools.cli, tools.config.evaluate, tools.networks\n"
    code += "try: tools.cli.train(dataset_utils.DATASETS['mnist5k'], argv=['--epohcs', '3'])\nexcept SystemExit: pass\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = fresh.run(code)
    assert done.stdout == "[]\n" and "--epohcs" in done.stderr


CHOICES = ["init", "optim", "scheduler", "loss", "reg", "neuron", "model", "amp", "on_nonfinite", "frames_by", "split"]


@pytest.mark.parametrize("setting", CHOICES)
def test_an_unknown_name_in_python_is_an_error_that_lists_the_known_ones(setting):
    offered = ", ".join(settings(TrainConfig)[setting].allowed())
    with pytest.raises(UserError, match=f"{setting} must be one of {offered}; got 'nosuch'"):
        TrainConfig(**{setting: "nosuch"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"minibatch": 0}, "minibatch must be at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"sigma": "0.3"}, "sigma must be float"),
        ({"epochs": True}, "epochs must be int, got True"),
        ({"nobn": 1}, "nobn must be bool, got 1"),
    ],
)
def test_a_configuration_made_in_python_is_checked_as_flags_are(wrong, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**wrong)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TrainConfig(), **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"perturbation": ["pepper"]}, "perturbation must be one of"),
        ({"perturbation": "sp"}, "perturbation must be a list"),
        ({"severity": [6]}, "severity must be at most 5"),
        ({"attack_preset": "nosuch"}, "attack_preset must be one of"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"neuron": "nosuch"}, "neuron must be one of"),
    ],
)
def test_so_is_that_of_an_evaluation(wrong, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**wrong)


REFUSED = [("--flip", "whose classes a mirror turns"), ("--split", "which is split already")]
OF_SOME = {"--demo": ("nmnist", "shd"), "--image_size": ("cifar10", "images"), "--memory_gb": ("cifar10", "images")}


@pytest.mark.parametrize("flag", OF_SOME)
def test_flags_of_some_data_sets_are_refused_by_the_others(flag, capsys):
    refusing, taking = OF_SOME[flag]
    with pytest.raises(SystemExit):
        parse(TrainConfig, [flag] if flag == "--demo" else [flag, "8"], dataset=DATASETS[refusing])
    assert f"{flag} has no meaning for {refusing}, " in capsys.readouterr().err
    for name, is_offered in ((refusing, False), (taking, True)):
        with pytest.raises(SystemExit):
            parse(TrainConfig, ["--help"], dataset=DATASETS[name])
        assert (flag in capsys.readouterr().out) == is_offered


@pytest.mark.parametrize(("flag", "why"), REFUSED)
def test_flags_that_a_data_set_refuses_are_not_offered(flag, why, capsys):
    given = [flag] if flag == "--flip" else [flag, "7:3"]
    with pytest.raises(SystemExit):
        parse(TrainConfig, given, dataset=DATASETS["nmnist"])
    assert re.search(f"{flag} has no meaning for nmnist, .*{why}", capsys.readouterr().err)
    for name, is_offered in (("nmnist", False), ("dvscifar10", True)):
        with pytest.raises(SystemExit):
            parse(TrainConfig, ["--help"], dataset=DATASETS[name])
        assert (flag in capsys.readouterr().out) == is_offered
