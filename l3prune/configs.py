"""Options of commands from a JSON file, under those of the command line. No TensorFlow."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from l3prune.errors import ParameterError
from l3prune.files import read_json


def typed_options(argv: Sequence[str] | None, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options on a command line, without defaults.

    Parameters
    ----------
    argv : sequence of str, or None
    parser : argparse.ArgumentParser
        All its positionals may be left out.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--epochs", type=int, default=9)
    >>> typed_options([], parser), typed_options(["--epochs", "3"], parser)
    ({}, {'epochs': 3})
    """
    untyped = object()
    # A default is for what a namespace does not have.
    namespace = argparse.Namespace(**{action.dest: untyped for action in parser._actions})
    parser.parse_known_args(argv, namespace)
    return {name: value for name, value in vars(namespace).items() if value is not untyped}


def read_options(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options in a --config file, by their names in the parsed arguments.

    Parameters
    ----------
    path : str
        A JSON object of options, or a run's own config.json.
    parser : argparse.ArgumentParser
        Knows the options.

    Raises
    ------
    ParameterError
        The file is no such object, or has an option that is unknown or of another type.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.json"
    >>> with open(path, "w") as file:
    ...     _ = file.write('{"epochs": 3}')
    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--epochs", type=int, default=9)
    >>> read_options(path, parser)
    {'epochs': 3}
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("arguments"), dict):
        content = content["arguments"]  # a run's own config.json
    if not isinstance(content, dict):
        raise ParameterError(f"{path} is not a JSON object of options")
    known: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.dest not in ("help", "config"):
            for name in (action.dest, *action.option_strings):
                known[name.lstrip("-").replace("-", "_")] = action
    options = {}
    for key, value in content.items():
        found = known.get(key.replace("-", "_"))
        if found is None:
            raise ParameterError(f"{path}: option {key!r} is unknown; see --help")
        if value is not None:
            options[found.dest] = _typed(found, value, f"{path}: {key}={value!r}")
    return options


def json_object(text: str) -> dict[str, Any]:
    """An option's value that is a JSON object, for `add_argument(type=…)`.

    Examples
    --------
    >>> json_object('{"filters": [16, 16, 32]}')
    {'filters': [16, 16, 32]}
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        example = '{"classes": 10}'
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as {example}")
    return value


def layer_percent(text: str) -> tuple[str, float]:
    """An option's value LAYER=PERCENT, for `add_argument(type=…)`.

    Examples
    --------
    >>> layer_percent("conv_2=50")
    ('conv_2', 50.0)
    """
    name, _, percent = text.rpartition("=")
    try:
        value = float(percent)
    except ValueError:
        name = ""
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER=PERCENT, such as conv_2=50")
    return name, value


def _typed(action: argparse.Action, value: Any, what: str) -> Any:
    """A JSON value as its option's type; nothing is rounded or guessed."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ParameterError(f"{what} is not true or false")
        return value
    if action.type is layer_percent and isinstance(value, dict):
        value = [f"{name}={percent}" for name, percent in value.items()]
    if action.nargs == "+":
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ParameterError(f"{what} has no values")
        return [_typed_one(action.type, each, what) for each in values]
    return _typed_one(action.type, value, what)


def _typed_one(kind: Any, value: Any, what: str) -> Any:
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise ParameterError(f"{what} is not a {'whole ' if kind is int else ''}number")
        return kind(value)
    if kind is json_object:
        if not isinstance(value, dict):
            raise ParameterError(f"{what} is not a JSON object")
        return value
    if kind is layer_percent:
        try:
            return layer_percent(str(value))
        except argparse.ArgumentTypeError as error:
            raise ParameterError(f"{what}: {error}") from error
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ParameterError(f"{what} is not a text")
    return str(value)
