"""Configurations from flags and recipes.

Precedence, lowest first: the field's default, the script's defaults for its data set, the recipe
(`--config configs/x.yaml`), the command line. All go through the same checks of type, choice and range.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from tools.errors import UserError
from tools.io.files import read_bytes

from .fields import GROUPS, RunConfig, Setting, settings
from .train import Dataset

MAX_RECIPE_BYTES = 2**16
Config = TypeVar("Config", bound=RunConfig)


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    defaults: dict | None = None,
    dataset: Dataset | None = None,
    description: str | None = None,
) -> tuple[Config, set[str]]:
    """Build a configuration; return it, and the names of the settings given in the recipe or on the command line.

    Args:
        argv: the arguments; None means sys.argv[1:].
        defaults: values of the script, which the recipe overrides.
        dataset: if given, a recipe's `dataset` must name it, and settings for the other kind of data are refused.
        description: first line of --help.

    Raises:
        SystemExit: with a message, as argparse does, for anything wrong in recipe or flags.
    """
    known, defaults = settings(config_class), defaults or {}
    parser = _parser(known, defaults, dataset, description)
    flags, unknown = parser.parse_known_args(map(_underscored, sys.argv[1:] if argv is None else argv))
    given = vars(flags)
    path = given.pop("config", None)
    try:
        if unknown:
            hint = f"; did you mean --{_nearest(unknown[0], known)}?" if unknown[0].startswith("--") else ""
            raise UserError(f"unknown argument {unknown[0]}{hint}")
        recipe = _read_recipe(path, known, dataset) if path else {}
        values = config_class.updated(config_class.updated({}, defaults), recipe, f"recipe {path}")
        values = config_class.updated(values, given)
        for name, value in values.items():
            where = f"recipe {path}: " if name in recipe and name not in given else ""
            known[name].check(value, where, dataset and dataset.has_pixels)
            # A run's config.yaml, a recipe too, has all settings, so those left at their defaults pass there.
            why_not = _why_not(known[name], dataset)
            if why_not and (name in given or value != known[name].default):
                raise UserError(f"{where}--{name} has no meaning for {dataset.name}, {why_not}")
        config = config_class(**values)
    except (UserError, OSError) as error:
        parser.error(str(error))
    return config, {*recipe, *given}


def checked(config_class: type[Config], values: dict, where: str | Path) -> Config:
    """A configuration made of plain values from the file `where`; UserError for values that a recipe may not have."""
    known = settings(config_class)
    if unknown := sorted(map(str, values.keys() - known)):
        raise UserError(f"{where} has settings that this version does not know: {', '.join(unknown)}")
    converted = {name: known[name].converted(value, f"{where}: {name}") for name, value in values.items()}
    values = config_class.updated({}, converted, str(where))
    for name, value in values.items():
        known[name].check(value, f"{where}: ")
    return config_class(**values)


def _why_not(setting: Setting, dataset: Dataset | None) -> str:
    """Why a setting has no meaning for a data set; "" if it has."""
    if dataset is None:
        return ""
    if setting.only not in (None, "pixels" if dataset.has_pixels else "events"):
        return f"which has {'images' if dataset.has_pixels else 'events'}"
    return getattr(dataset, "refused", {}).get(setting.name, "")


def _parser(known: dict[str, Setting], defaults: dict, dataset, description: str | None) -> argparse.ArgumentParser:
    """The flags; `Setting.check` refuses values that are not among the choices."""
    usage, absent = "%(prog)s [--config YAML] [flags]", argparse.SUPPRESS
    parser = argparse.ArgumentParser(usage=usage, description=description, argument_default=absent, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="recipe; flags override it")
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, setting in known.items():
        text = setting.help.replace("%", "%%")
        default = defaults.get(name, setting.default)
        if setting.network and default is None:
            default = "the snapshot's"
        if default is not False and default not in (None, "", []):
            text += f" (default: {default})"
        if setting.kind is bool:
            options = dict(action=argparse.BooleanOptionalAction)
        else:
            allowed = setting.allowed(dataset and dataset.has_pixels)
            metavar = setting.kind.__name__.upper() if allowed is None else f"{{{','.join(allowed)}}}"
            options = dict(type=setting.kind, metavar=metavar, nargs="*" if setting.is_list else None)
        shown = absent if _why_not(setting, dataset) else text
        groups[setting.group].add_argument(f"--{name}", help=shown, **options)
    return parser


def _underscored(word: str) -> str:
    """Turn --weight-decay into --weight_decay: flags can be typed either way."""
    flag = re.match("(--(?:no-)?)([^=]*)", word)
    return word if flag is None else flag[1] + flag[2].replace("-", "_") + word[flag.end() :]


def _nearest(name: object, known: Iterable[str]) -> str:
    return difflib.get_close_matches(str(name), known, n=1, cutoff=0)[0]


def _read_recipe(path: str, known: dict[str, Setting], dataset) -> dict:
    """The recipe's values by name; a UserError names the nearest valid key."""
    recipe = _read_yaml(path)
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path} must consist of `key: value` lines")
    recipe.pop("provenance", None)  # a run's config.yaml is a recipe too
    name = dataset and dataset.name
    wanted = recipe.pop("dataset", name)
    if wanted != name:
        raise UserError(f"recipe {path} is for the data set {wanted!r}, this script is for {name!r}")
    for key in recipe:
        if key not in known:
            raise UserError(f"recipe {path} has the unknown key {key!r}; did you mean {_nearest(key, known)!r}?")
    return {key: known[key].converted(value, f"recipe {path}: {key}") for key, value in recipe.items()}


def _read_yaml(path: str) -> object:
    """The content of a small YAML file as plain data.

    Refused are a key given twice, and aliases and nesting, which can grow when read.
    """
    raw, depth = read_bytes(path, MAX_RECIPE_BYTES), 0
    try:
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"recipe {path} has an alias (*{event.anchor}), and no aliases are allowed")
            if depth > 2:
                raise UserError(f"recipe {path} may have values and lists of values, nothing deeper")
        root, lines = yaml.compose(raw, Loader=yaml.SafeLoader), {}
        for key, _ in root.value if isinstance(root, yaml.MappingNode) else []:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(f"recipe {path} has {key.value!r} twice, in lines {lines[key.value]} and {line}")
            lines[key.value] = line
        return yaml.safe_load(raw)
    except UserError:
        raise
    except Exception as error:  # PyYAML raises many kinds for values that are not what their tags say
        mark = getattr(error, "problem_mark", None)
        why = f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
        raise UserError(f"recipe {path} is not valid YAML: {why}") from error
