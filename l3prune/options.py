"""The options of python -m l3prune.pruning: parsed, read from a file, checked. No TensorFlow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import Any

from l3prune.arguments import (
    DEFAULT_SPARSITY,
    FROM_DATA,
    LABEL_OPTIONS,
    POSITIONALS,
    new_parser,
)
from l3prune.configs import read_options, typed_options
from l3prune.descent import DESCENT_OPTIONS
from l3prune.errors import ParameterError
from l3prune.runs import check_run_name

#: EdgeL3's names of model types.
MODEL_TYPES = {
    "cnn_L3_melspec2": "mel256",
    "cnn_L3_melspec1": "mel128",
    "cnn_L3_kapredbinputbn": "linear",
}

#: Options that say what goes; flags that make this choice set a --config's aside.
CHOICES = (
    *("layerwise", "sparsity", "global_sparsity", "pattern", "blocks", "budget"),
    *("filterwise", "num_filters", "filter_ratio", "global_filter_ratio", "layer_ratio", "fresh"),
    "zero_filters",
)

#: Options that make the student another network than the teacher.
STUDENTS = ("student", "include_layers", "from_conv_layer")

#: How masks change in retraining; `schedules.MaskSchedule` has them in detail.
MASK_SCHEDULES = ("constant", "polynomial", "layer-by-layer", "rigl")
MASK_SETTINGS = (
    *("frequency", "begin_step", "end_step", "initial_sparsity"),
    *("epochs_per_layer", "ramp", "rigl_alpha"),
)

#: How a network is retrained on labels.
LABELS = ("labels", "iterative", "float16", "from_scratch", *LABEL_OPTIONS)

_RATIOS = ("filter_ratio", "global_filter_ratio", "layer_ratio")
_FILTERS = ("num_filters", *_RATIOS)
_SHARING = ("allocation", "sensitivity")
_PLATEAU = ("plateau_patience", "plateau_factor")
_COSINE = ("cosine_interval",)
_LINEAR = ("decay_from", "decay_to")
_RETRAINING = (
    *("num_epochs", "learning_rate", "train_epoch_size", "validation_epoch_size"),
    *("train_batch_size", "checkpoint_interval", "early_stopping_patience", "min_delta"),
    *("schedule", "best_by", "best_from", *_PLATEAU, *_COSINE, *_LINEAR),
    *("final_learning_rate", *DESCENT_OPTIONS),
    *("batch_norm", "distribute", "precision", "xla"),
)


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
    everything = new_parser(POSITIONALS)
    typed = typed_options(argv, everything)
    config = read_options(typed["config"], everything) if "config" in typed else {}
    labelled = "labels" in typed or "labels" in config
    parser = new_parser(
        [name for name in POSITIONALS if name in config],
        ["validation_data_dir"] if labelled else [],
    )
    aside = _set_aside(config, typed)
    parser.set_defaults(**{key: value for key, value in config.items() if key not in aside})
    args = parser.parse_args(argv)
    if args.layer_ratio is not None:
        given, args.layer_ratio = args.layer_ratio, dict(args.layer_ratio)
        if len(given) > len(args.layer_ratio):
            raise ParameterError("--layer-ratio names a layer twice; give one ratio a layer")
    _check(args)
    # A file may be for runs with and without retraining, and flags may leave no use for the rest.
    changed = typed.keys() & {*CHOICES, *STUDENTS, "allocation", "criterion", "schedule"}
    unused = config.keys() & (config if changed else {*_RETRAINING, "random_state"})
    _check_effect(args, unused - typed.keys())
    return args


def _set_aside(config: dict[str, Any], typed: dict[str, Any]) -> set[str]:
    """Options of a file that go with a choice of its which the command line makes otherwise."""
    aside: set[str] = set()
    if "mask_schedule" in typed:
        aside |= {*MASK_SETTINGS}
    if "allocation" in typed:
        aside |= {"sensitivity"}
    # How to prune is one choice: flags that make it set the file's aside, but for what they need
    # themselves.
    chosen = typed.keys() & {*CHOICES}
    if not chosen:
        return aside
    kept: set[str] = set()
    if chosen <= {"layerwise", "sparsity", "blocks"}:
        kept = {"layerwise", "sparsity", "blocks"}
    elif chosen == {"filterwise"}:
        kept = {*_FILTERS, "fresh", "round_to", "budget", *_SHARING}
    elif chosen <= {"filterwise", *_FILTERS, "fresh"}:
        kept = {"filterwise", *(("round_to",) if chosen & {*_RATIOS} else ())}
        kept |= {"layer_ratio"} if chosen == {"fresh"} else set()
        kept |= {"fresh"} if chosen == {"layer_ratio"} else set()
    elif "budget" in chosen and "budget" in config:
        kept = {*_SHARING, *(("layerwise", "filterwise") if chosen == {"budget"} else ())}
    aside |= {*CHOICES, *_SHARING, "round_to"} - kept
    before = bool(config.get("filterwise"))
    filters = bool(chosen & {"filterwise", *_FILTERS, "fresh"}) or ("filterwise" in kept and before)
    if filters or "pattern" in chosen:
        aside |= {"mask_schedule", *MASK_SETTINGS}
    if filters != before and any(config.get(name, False) is not False for name in CHOICES):
        aside |= {"criterion"}  # of weights or of filters
    return aside


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
    _check_choice(args)
    _check_fine_tuning(args)
    _check_labels(args)
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
    check_run_name(args.run_name)
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
    if args.zero_filters:
        others = [name for name in chosen_of(args, CHOICES) if name != "zero_filters"]
        if others:
            raise ParameterError(
                f"--zero-filters takes those filters that are zero; leave out {_flag(others[0])}"
            )
        for name in ("retrain", "criterion", "sensitivity", "finetune", "test_model"):
            if getattr(args, name):
                raise ParameterError(
                    f"{_flag(name)} does not go with --zero-filters, which changes no output"
                )
        args.filterwise = True
        return
    weights = ["sparsity", "global_sparsity", "pattern"]
    given = [name for name in [*weights, *_FILTERS, "budget"] if getattr(args, name) is not None]
    flags = [_flag(name) for name in given]
    if len(given) > 1:
        raise ParameterError(f"give one of {' and '.join(flags)}, not both")
    if args.filterwise:
        if args.layerwise:
            raise ParameterError("--layerwise zeroes weights, --filterwise removes filters: choose")
        if not given or given[0] in weights:
            raise ParameterError(
                "--filterwise needs --num_filters, --filter-ratio, --global-filter-ratio, "
                "--layer-ratio or --budget"
            )
    elif given and given[0] in _FILTERS:
        raise ParameterError(f"{flags[0]} is for --filterwise")
    elif args.global_sparsity is not None and args.layerwise:
        raise ParameterError("--global-sparsity prunes all layers together: drop --layerwise")
    elif not args.layerwise and given == ["sparsity"]:
        raise ParameterError("--sparsity is for --layerwise")
    elif not (args.layerwise or given or reduces(args) or args.finetune or args.test_model):
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
        *("sparsity", "global_sparsity", "filter_ratio", "global_filter_ratio", "layer_ratio"),
        "initial_sparsity",
    ):
        values = getattr(args, name)
        values = [*values.values()] if isinstance(values, dict) else values
        for percent in values if isinstance(values, list) else [values]:
            if percent is not None and not 0 <= percent < 100:
                word = name.replace("global_", "").replace("_", " ")
                raise ParameterError(f"{word} {percent:g} is not in percent, from 0 to below 100")


def _check_fine_tuning(args: argparse.Namespace) -> None:
    """What goes with an audio-visual network."""
    if args.finetune and not args.retrain:
        raise ParameterError("--finetune is a way to retrain: give --retrain too")
    if args.test_model and args.retrain and not args.finetune:
        raise ParameterError(
            "--test-model with --retrain needs --finetune: distillation trains no audio-visual "
            "network that could be tested"
        )
    if not (args.finetune or args.test_model):
        return
    flag = "--finetune" if args.finetune else "--test-model"
    for name in (*STUDENTS, "reduction"):
        if getattr(args, name) is not None:
            raise ParameterError(
                f"{_flag(name)} does not go with {flag}, which takes both halves of the network in "
                "WEIGHT_PATH; --filterwise makes its audio half smaller"
            )


def _check_labels(args: argparse.Namespace) -> None:
    """What goes with labels, and with layers that are pruned by name."""
    named = args.layer_ratio or {}
    if args.fresh and not named:
        raise ParameterError("--fresh is for --layer-ratio")
    if args.iterative:
        if not (args.labels and args.retrain and named):
            raise ParameterError("--iterative is for --labels with --retrain and --layer-ratio")
        if args.fresh and not {*named} & {*args.fresh}:
            raise ParameterError(
                f"--fresh {' '.join(args.fresh)}: these get fresh weights when one of them loses "
                "filters, and --layer-ratio names none of them"
            )
    if args.labels is None:
        parser = new_parser()
        for name in LABELS:
            if getattr(args, name) != parser.get_default(name):
                raise ParameterError(f"{_flag(name)} is for --labels: give that too")
        return
    for name in (*STUDENTS, "reduction", "finetune", "test_model", "sensitivity"):
        if getattr(args, name) not in (None, False):
            raise ParameterError(f"{_flag(name)} does not go with --labels")
    if args.from_scratch:
        if not (args.filterwise and args.retrain):
            raise ParameterError("--from-scratch is for --filterwise with --retrain")
        for name in ("fresh", "iterative"):
            if getattr(args, name):
                raise ParameterError(
                    f"--from-scratch gives all layers fresh weights in one go; drop {_flag(name)}"
                )
    if args.criterion in FROM_DATA:
        raise ParameterError(
            f"--criterion {args.criterion} scores what filters do to an embedding; with --labels "
            "take a criterion of weights, such as l1"
        )


def _check_masks(args: argparse.Namespace) -> None:
    """What goes with masks that change."""
    given = chosen_of(args, MASK_SETTINGS)
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
    if args.precision == "mixed_float16":
        raise ParameterError(
            "--precision mixed_float16 leaves out steps whose gradients overflow, and "
            "--mask-schedule counts steps; take mixed_bfloat16"
        )
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


def _check_effect(args: argparse.Namespace, unused: Collection[str]) -> None:
    """Refuse options that would change nothing, but for those that may be `unused`.

    Of what only retraining needs, a warning is enough.
    """
    prunes = bool(chosen_of(args, CHOICES))
    from_data = args.criterion in FROM_DATA
    fresh = bool(chosen_of(args, ("student", "include_layers")))
    ratios = any(getattr(args, name) is not None for name in _RATIOS)
    parser = new_parser()
    idle = []
    for names, effect, needed in (
        (("allocation",), args.budget is not None, "--budget"),
        (("criterion",), prunes, "a choice of what is pruned, such as --layerwise"),
        (("round_to",), ratios, "--filter-ratio, --global-filter-ratio or --layer-ratio"),
        (("hop_size",), args.labels is None, "windows, which --labels has none of"),
        (("criterion_windows",), from_data, f"--criterion {', '.join(FROM_DATA)}"),
        (("validation_batch_size",), args.retrain or from_data, None),
        (("random_state",), args.retrain or fresh, None),
        (_RETRAINING, args.retrain, None),
        (_PLATEAU, args.schedule == "plateau", "--schedule plateau"),
        (_COSINE, args.schedule == "cosine", "--schedule cosine"),
        (_LINEAR, args.schedule == "linear", "--schedule linear"),
        (
            ("final_learning_rate",),
            args.schedule in ("cosine", "linear"),
            "--schedule cosine or linear",
        ),
    ):
        for name in names:
            given = getattr(args, name) != parser.get_default(name)
            if not given or effect or name in unused:
                continue
            if needed is None:
                idle.append(_flag(name))
            elif args.retrain or name not in _RETRAINING:
                raise ParameterError(
                    f"{_flag(name)} has no effect without {needed}: give that too, or leave it out"
                )
    if idle:  # EdgeL3's job lines give them whether they retrain or not
        print(f"warning: {', '.join(idle)} without effect; --retrain is not given", file=sys.stderr)


def _flag(name: str) -> str:
    """An option as it is documented."""
    found = next(action for action in new_parser()._actions if action.dest == name)
    return next(flag for flag in found.option_strings if flag.startswith("--"))
