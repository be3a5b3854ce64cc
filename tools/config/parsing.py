"""Configurations: dataclasses whose fields are the command-line flags and the keys of a recipe.

Precedence, lowest first: the field's default, the script's defaults for its data set, the recipe
(`--config configs/x.yaml`), the command line. All go through the same checks of type and choice.
"""

import argparse
import dataclasses
import difflib
import math
import sys

import yaml

from tools.io.files import read_bytes

from .fields import MAX_RECIPE_BYTES


def parse(config_class, argv=None, defaults=None, dataset=None, description=None):
    """Build a configuration from defaults, recipe and command line.

    Args:
        config_class: `TrainConfig` or `EvaluationConfig`.
        argv: arguments; None means sys.argv[1:].
        defaults: values of the script, below the recipe.
        dataset: name of the script's data set; a recipe's key `dataset` must agree with it.
        description: first line of --help.

    Returns:
        The configuration, and the set of the names of fields given in the recipe or on the command line.

    Raises:
        SystemExit: with a message, as argparse does, for anything wrong in recipe or flags.
    """
    parser = _parser(config_class, description, defaults or {})
    given = vars(parser.parse_args(_underscored(parser, sys.argv[1:] if argv is None else argv)))
    recipe_path = given.pop("config", None)
    try:
        values = _read_recipe(recipe_path, config_class, dataset) if recipe_path else {}
        config = config_class(**{**(defaults or {}), **values, **given})
        _check_all(config)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return config, {*values, *given}


def checked(config_class, values, where):
    """A configuration made of plain values from a file, each checked as a recipe's is.

    Args:
        config_class: `TrainConfig` or `EvaluationConfig`.
        values: {name of a field: value}.
        where: for messages, what they are from.

    Raises:
        ValueError: for a value of the wrong type or out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    converted = {name: _convert(fields[name], value, f"{where}: {name}") for name, value in values.items()}
    config = config_class(**converted)
    _check_all(config, f"{where}: ")
    return config


def _parser(config_class, description, defaults):
    parser = argparse.ArgumentParser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="recipe; flags override it")
    for field in dataclasses.fields(config_class):
        meta = field.metadata
        default = defaults.get(field.name, field.default)
        text = meta["help"].replace("%", "%%")
        if default not in (None, "", dataclasses.MISSING):
            text += f" (default: {default})"
        name = f"--{field.name}"
        if meta["kind"] is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = None if meta["choices"] else meta["kind"].__name__.upper()
            parser.add_argument(
                name, type=meta["kind"], choices=meta["choices"], nargs=meta["nargs"], metavar=metavar, help=text
            )
    return parser


def _underscored(parser, argv):
    """Accept --weight-decay for --weight_decay: flags are listed once, and can be typed either way."""
    known = parser._option_string_actions
    result = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag not in known:
            prefix = "--no-" if flag.startswith("--no-") else "--"
            candidate = prefix + flag[len(prefix) :].replace("-", "_")
            flag = candidate if candidate in known else flag
        result.append(flag + equals + value)
    return result


def _read_recipe(path, config_class, dataset):
    """The recipe's values by field name; a ValueError names the nearest valid key."""
    recipe = _read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path} must be a list of `key: value` lines")
    recipe.pop("provenance", None)  # a run's config.yaml is a recipe too
    wanted = recipe.pop("dataset", dataset)
    if wanted != dataset:
        raise ValueError(f"recipe {path} is for the data set {wanted!r}, this script is for {dataset!r}")
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values = {}
    for key, value in recipe.items():
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)[0]
            raise ValueError(f"recipe {path} has the unknown key {key!r}; did you mean {nearest!r}?")
        values[key] = _convert(fields[key], value, f"recipe {path}: {key}")
    return values


def _read_yaml(path):
    """The content of a small YAML file, as plain data; no file is so written that it grows when it is read."""
    raw, depth = read_bytes(path, MAX_RECIPE_BYTES), 0
    try:
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > 2:
                raise ValueError("a recipe has values and lists of values, no aliases and nothing deeper")
        return yaml.safe_load(raw)
    except Exception as error:  # PyYAML raises many kinds for values that are not what their tags say
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from error


def _convert(field, value, where):
    """Check a recipe's value as argparse would; an integer, or 1e-3 (a string in YAML 1.1), may be a float."""
    kind = field.metadata["kind"]
    if field.metadata["nargs"] == "*":
        value = value if isinstance(value, list) else [value]
        if not all(type(item) is kind for item in value):
            raise ValueError(f"{where} must be a list of {kind.__name__}, got {value!r}")
        return value
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if value is False and "no" in (field.metadata["choices"] or ()):
        return "no"  # YAML 1.1 reads an unquoted no as false
    if type(value) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _check_all(config, where=""):
    """Raise ValueError if any value is not among its field's choices or out of its range."""
    for field in dataclasses.fields(config):
        _check(field, getattr(config, field.name), where)


def _check(field, value, where):
    """Raise ValueError if a field's value is not among its choices or out of its range."""
    meta = field.metadata
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{where}{field.name} must be finite, got {item!r}")
        if meta["choices"] and item not in meta["choices"]:
            raise ValueError(f"{where}{field.name} must be one of {', '.join(map(str, meta['choices']))}; got {item!r}")
        if meta["low"] is not None and not item >= meta["low"]:
            raise ValueError(f"{where}{field.name} must be at least {meta['low']}, got {item!r}")
        if meta["high"] is not None and not item <= meta["high"]:
            raise ValueError(f"{where}{field.name} must be at most {meta['high']}, got {item!r}")
