"""The options of python -m l3prune.pruning: parsed, read from a file, checked. No TensorFlow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l3prune.arguments import DEFAULT_SPARSITY, POSITIONALS, new_parser
from l3prune.errors import ParameterError
from l3prune.files import read_json

#: EdgeL3's names of model types.
MODEL_TYPES = {
    "cnn_L3_melspec2": "mel256",
    "cnn_L3_melspec1": "mel128",
    "cnn_L3_kapredbinputbn": "linear",
}

#: Flags of EdgeL3 whose capability l3prune does not have yet.
NOT_YET = {
    "--finetune": "fine-tuning on audio-visual correspondence; leave it out for distillation",
    "--test-model": "evaluation on audio-visual correspondence; see report.json for the embedding",
}

#: Options that say what goes; flags that make this choice set a --config's aside.
CHOICES = (
    *("layerwise", "sparsity", "global_sparsity", "pattern", "blocks", "budget"),
    *("filterwise", "num_filters", "filter_ratio", "global_filter_ratio"),
)

#: Options that make the student another network than the teacher.
STUDENTS = ("student", "include_layers", "from_conv_layer")

#: How masks change in retraining; `schedules.MaskSchedule` has them in detail.
MASK_SCHEDULES = ("constant", "polynomial", "layer-by-layer", "rigl")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments from the command line, over those of --config, over the defaults; checked.

    Raises
    ------
    ParameterError
        Options that contradict each other, or are outside their ranges, as far as that can be told
        without data and TensorFlow.

    Examples
    --------
    >>> parse(["w.h5", "train", "valid", "out", "--layerwise", "--sparsity", "90"]).sparsity
    [90.0]
    """
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    path = before.parse_known_args(argv)[0].config
    config = {} if path is None else _read_config(path)
    parser = new_parser([name for name in POSITIONALS if name in config])
    if config:
        # How to prune is one choice: flags that make it set the file's aside, but for what they
        # need themselves.
        chosen = set(chosen_of(new_parser(POSITIONALS).parse_known_args(argv)[0], CHOICES))
        if chosen:
            kept: set[str] = set()
            if chosen <= {"layerwise", "sparsity", "blocks"}:
                kept = {"layerwise", "sparsity", "blocks"}
            elif chosen <= {"num_filters", "filter_ratio", "global_filter_ratio"}:
                kept = {"filterwise"}
            aside = {*CHOICES, "allocation", "sensitivity"} - kept
            config = {key: value for key, value in config.items() if key not in aside}
        parser.set_defaults(**config)
    args = parser.parse_args(argv)
    _check(args)
    return args


def _read_config(path: str) -> dict[str, Any]:
    """The options in a --config file, by their names in the parsed arguments."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("arguments"), dict):
        content = content["arguments"]  # a run's own config.json
    if not isinstance(content, dict):
        raise ParameterError(f"{path} is not a JSON object of options")
    known: dict[str, argparse.Action] = {}
    for action in new_parser()._actions:
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


def _typed(action: argparse.Action, value: Any, what: str) -> Any:
    """A JSON value as its option's type; nothing is rounded or guessed."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ParameterError(f"{what} is not true or false")
        return value
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
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ParameterError(f"{what} is not a text")
    return str(value)


def chosen_of(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Those of some options that were given; 0 is given too.

    Examples
    --------
    >>> args = parse(["w.h5", "train", "valid", "out", "--global-sparsity", "0"])
    >>> chosen_of(args, CHOICES)
    ['global_sparsity']
    """
    values = {name: getattr(args, name) for name in names}
    return [name for name, value in values.items() if value is not None and value is not False]


def reduces(args: argparse.Namespace) -> bool:
    """Whether the arguments make a smaller network, rather than masks in the whole one.

    Examples
    --------
    >>> reduces(parse(["w.h5", "train", "valid", "out", "--include_layers", *"11111110"]))
    True
    """
    return args.filterwise or bool(chosen_of(args, STUDENTS))


def _check(args: argparse.Namespace) -> None:
    for flag, what in NOT_YET.items():
        if getattr(args, flag[2:].replace("-", "_")):
            raise ParameterError(f"{flag} is not available yet: {what}")
    _check_choice(args)
    _check_masks(args)
    for name, least in (
        ("train_epoch_size", 1),
        ("validation_epoch_size", 1),
        ("train_batch_size", 1),
        ("validation_batch_size", 1),
        ("criterion_windows", 0),
    ):
        size = getattr(args, name)
        if size is not None and size < least:
            raise ParameterError(
                f"--{name.replace('_', '-')} {size} is not a whole number from {least} on"
            )
    if args.reduction is not None:
        if args.reduction not in ("pca", "linear"):
            raise ParameterError(f"--reduction {args.reduction!r}; allowed: pca, linear")
        if not args.retrain:
            raise ParameterError("--reduction is of the distillation: give --retrain too")
    if args.continue_model_dir is not None and not args.retrain:
        raise ParameterError("--continue-model-dir goes on with retraining: give --retrain too")
    if args.run_name is not None and (
        args.run_name in ("", ".", "..") or Path(args.run_name).name != args.run_name
    ):
        raise ParameterError(f"--run-name {args.run_name!r} is not the name of one folder")
    ignored = [
        f"--{name.replace('_', '-')}"
        for name in ("gsheet_id", "google_dev_app_name", "log_path", "gpus")
        if getattr(args, name) is not None
    ]
    if ignored:
        print(
            f"warning: {', '.join(ignored)} without effect; results are CSV and JSON files",
            file=sys.stderr,
        )


def _check_choice(args: argparse.Namespace) -> None:
    """What goes: one choice, of weights or of filters."""
    weights = ["sparsity", "global_sparsity", "pattern"]
    filters = ["num_filters", "filter_ratio", "global_filter_ratio"]
    given = [name for name in [*weights, *filters, "budget"] if getattr(args, name) is not None]
    flags = [f"--{name if name == 'num_filters' else name.replace('_', '-')}" for name in given]
    if len(given) > 1:
        raise ParameterError(f"give one of {' and '.join(flags)}, not both")
    if args.filterwise:
        if args.layerwise:
            raise ParameterError("--layerwise zeroes weights, --filterwise removes filters: choose")
        if not given or given[0] in weights or args.blocks:
            raise ParameterError(
                "--filterwise needs --num_filters, --filter-ratio, --global-filter-ratio or "
                "--budget"
            )
    elif given and given[0] in filters:
        raise ParameterError(f"{flags[0]} is for --filterwise")
    elif args.global_sparsity is not None and args.layerwise:
        raise ParameterError("--global-sparsity prunes all layers together: drop --layerwise")
    elif not args.layerwise and given == ["sparsity"]:
        raise ParameterError("--sparsity is for --layerwise")
    elif not args.layerwise and not given and not reduces(args):
        raise ParameterError(
            "nothing to do: give --layerwise, --filterwise, --pattern, --budget, "
            "--global-sparsity PERCENT, --include_layers, --from-conv-layer or --student"
        )
    elif args.layerwise and not given:
        args.sparsity = list(DEFAULT_SPARSITY)
    if args.sensitivity is not None and args.allocation != "sensitivity":
        raise ParameterError("--sensitivity is for --budget with --allocation sensitivity")
    if args.allocation == "sensitivity" and (args.sensitivity is None or args.budget is None):
        raise ParameterError(
            "--allocation sensitivity needs a --budget, and --sensitivity DIR: the folder of a "
            "python -m l3prune.sensitivity"
        )
    if args.blocks is not None and args.sparsity is None:
        raise ParameterError("--blocks goes with --layerwise --sparsity")
    for name in (
        *("sparsity", "global_sparsity", "filter_ratio", "global_filter_ratio"),
        "initial_sparsity",
    ):
        values = getattr(args, name)
        for percent in values if isinstance(values, list) else [values]:
            if percent is not None and not 0 <= percent < 100:
                word = name.replace("global_", "").replace("_", " ")
                raise ParameterError(f"{word} {percent:g} is not in percent, from 0 to below 100")


def _check_masks(args: argparse.Namespace) -> None:
    """What goes with masks that change."""
    settings = (
        *("frequency", "begin_step", "end_step", "initial_sparsity"),
        *("epochs_per_layer", "ramp", "rigl_alpha"),
    )
    given = chosen_of(args, settings)
    if args.mask_schedule is None:
        if given:
            raise ParameterError(
                f"--{given[0].replace('_', '-')} is for --mask-schedule: give one of "
                f"{', '.join(MASK_SCHEDULES)}"
            )
        return
    if args.mask_schedule not in MASK_SCHEDULES:
        raise ParameterError(
            f"--mask-schedule {args.mask_schedule!r}; allowed: {', '.join(MASK_SCHEDULES)}"
        )
    if not args.retrain:
        raise ParameterError("--mask-schedule changes masks in retraining: give --retrain too")
    if args.filterwise or args.pattern is not None:
        raise ParameterError(
            "--mask-schedule is for --layerwise, --global-sparsity and budgets of weights, not for "
            f"--{'filterwise' if args.filterwise else 'pattern'}"
        )
    if not (args.layerwise or args.global_sparsity is not None or args.budget is not None):
        raise ParameterError(
            "--mask-schedule needs a sparsity to come to: give --layerwise, --global-sparsity or "
            "--budget"
        )
