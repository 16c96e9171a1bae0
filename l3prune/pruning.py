"""python -m l3prune.pruning: prune a network layerwise, retrain it by distillation, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import make_folder, read_json, write_json

#: EdgeL3's own default for its eight convolutions, in percent.
DEFAULT_SPARSITY = (0, 60, 60, 70, 50, 70, 70, 80)

#: EdgeL3's names of model types.
MODEL_TYPES = {
    "cnn_L3_melspec2": "mel256",
    "cnn_L3_melspec1": "mel128",
    "cnn_L3_kapredbinputbn": "linear",
}

#: Flags of EdgeL3 whose capability l3prune does not have yet.
NOT_YET = {
    "finetune": "fine-tuning on audio-visual correspondence; leave it out for distillation",
    "filterwise": "filterwise pruning; use --layerwise",
    "num_filters": "filterwise pruning; use --layerwise --sparsity",
    "include_layers": "depth students; use --layerwise --sparsity",
    "test_model": "evaluation on audio-visual correspondence; see report.json for the embedding",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.pruning",
        description="Prune the convolutions of an L3 audio network by magnitude, retrain it by "
        "distillation from the unpruned network with the pruned weights held at zero, and report.",
        epilog="Results go to OUTPUT_DIR/embedding/pruning_kd/<subset>/<model type>/<run>/ "
        "(pruning without --retrain). Exit code: 0 done, 2 wrong input.",
    )
    add = parser.add_argument
    add("weight_path", nargs="?", help="weight file of the unpruned network (.h5, .h5.gz)")
    add("train_data_dir", nargs="?", help="audio files, or AVC HDF5 shards, to retrain on")
    add("validation_data_dir", nargs="?", help="the same, to choose the best epoch and report on")
    add("output_dir", nargs="?", help="where results go")
    add("--config", metavar="FILE", help="JSON with any of these options; flags win over it")

    pruning = parser.add_argument_group("pruning")
    add = pruning.add_argument
    add("-layerwise", "--layerwise", action="store_true", help="prune each layer by itself")
    add(
        "-sp",
        "--sparsity",
        nargs="+",
        type=float,
        metavar="PERCENT",
        help=f"one for each convolution, or one for all ({' '.join(map(str, DEFAULT_SPARSITY))})",
    )
    add(
        "--global-sparsity",
        type=float,
        metavar="PERCENT",
        help="prune all layers together to this overall sparsity",
    )
    add("--criterion", default="magnitude", help="what is kept is highest in it (%(default)s)")
    add(
        "-mt",
        "--model-type",
        help="what the weight file holds; default: detected (names of create_network, "
        "or EdgeL3's such as cnn_L3_melspec2)",
    )

    retraining = parser.add_argument_group("retraining")
    add = retraining.add_argument
    add("-ret", "--retrain", action="store_true", help="distil from the unpruned network")
    add("-e", "--num-epochs", type=int, default=300, help="at most (%(default)s)")
    add("-lr", "--learning-rate", type=float, default=1e-5, help="Adam's (%(default)s)")
    add("-tes", "--train-epoch-size", type=int, help="batches an epoch; default: all data once")
    add("-ves", "--validation-epoch-size", type=int, help="the same for validation")
    add("-tbs", "--train-batch-size", type=int, default=64, help="windows (%(default)s)")
    add("-vbs", "--validation-batch-size", type=int, default=64, help="windows (%(default)s)")
    add(
        "-ci",
        "--checkpoint-interval",
        type=int,
        default=10,
        help="epochs between numbered checkpoints, 0 for none (%(default)s)",
    )
    add("--early-stopping-patience", type=int, default=10, help="epochs (%(default)s)")
    add("--min-delta", type=float, default=1e-4, help="of early stopping (%(default)s)")
    add("--schedule", default="plateau", help="learning rate: plateau or cosine (%(default)s)")
    add("--plateau-patience", type=int, default=5, help="epochs (%(default)s)")
    add("--plateau-factor", type=float, default=0.1, help="(%(default)s)")
    add(
        "--batch-norm",
        default="train",
        help="train; or freeze, which needs fewer steps (%(default)s)",
    )
    add("--hop-size", type=float, default=0.5, help="seconds between windows (%(default)s)")
    add("-r", "--random-state", "--seed", type=int, default=20180216, help="(%(default)s)")

    running = parser.add_argument_group("running")
    add = running.add_argument
    add("-cmd", "--continue-model-dir", metavar="DIR", help="go on with the run in this folder")
    add("--run-name", help="last part of the run's folder; default: the time")
    add("--cache-dir", help="decoded audio and teacher embeddings; default: OUTPUT_DIR/cache")
    add("--quiet", action="store_true", help="no progress; only the report and warnings")

    old = parser.add_argument_group("accepted from EdgeL3's job lines, without effect")
    for flags in (
        ("-gsid", "--gsheet-id"),
        ("-gdan", "--google-dev-app-name"),
        ("--gpus",),
        ("-lp", "--log-path"),
    ):
        old.add_argument(*flags, nargs="?", help=argparse.SUPPRESS)
    for flags in (("-v", "--verbose"), ("-nl", "--no-logging"), ("-sav", "--save-model")):
        old.add_argument(*flags, action="store_true", help=argparse.SUPPRESS)
    old.description = (
        "--gsheet-id, --google-dev-app-name, --gpus, --log-path, --verbose, --no-logging, "
        "--save-model: results are CSV and JSON, every model is saved, TensorFlow takes the "
        "device that it sees"
    )
    for flags, nargs in (
        (("-finetune", "--finetune"), 0),
        (("-filterwise", "--filterwise"), 0),
        (("-filters", "--num_filters"), "+"),
        (("-layers", "--include_layers"), "+"),
        (("-tst", "--test-model"), 0),
    ):
        if nargs == 0:
            parser.add_argument(*flags, action="store_true", help=argparse.SUPPRESS)
        else:
            parser.add_argument(*flags, nargs=nargs, help=argparse.SUPPRESS)
    return parser


#: The pruned network before retraining, in a run's folder.
PRUNED = "model_pruned.h5"

POSITIONALS = ("weight_path", "train_data_dir", "validation_data_dir", "output_dir")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments from the command line, over those of --config, over the defaults."""
    parser = _parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    config_path = parser.parse_known_args(argv)[0].config
    if config_path is not None:
        config = read_json(config_path)
        if isinstance(config, dict) and isinstance(config.get("arguments"), dict):
            config = config["arguments"]  # a run's own config.json
        if not isinstance(config, dict):
            raise ParameterError(f"{config_path} is not a JSON object of options")
        words: list[str] = []
        known = {action.dest: action for action in parser._actions}
        for key, value in config.items():
            name = key.replace("-", "_")
            if name not in known or name in ("help", "config"):
                raise ParameterError(f"{config_path}: option {key!r} is unknown; see --help")
            if name in POSITIONALS:
                parser.set_defaults(**{name: str(value)})
            elif isinstance(value, bool) or value is None:
                words += [known[name].option_strings[-1]] if value else []
            else:
                values = value if isinstance(value, list) else [value]
                words += [known[name].option_strings[-1], *map(str, values)]
        # The flags come last and win; a list option must not swallow the positionals.
        argv = [*words, "--config", str(config_path), *argv]
    args = parser.parse_args(argv)
    missing = [name for name in POSITIONALS if getattr(args, name) is None]
    if missing:
        raise ParameterError(f"{', '.join(missing)} missing; see --help")
    return args


def _check(args: argparse.Namespace) -> None:
    """Everything about the arguments that needs neither data nor TensorFlow."""
    for name, what in NOT_YET.items():
        if getattr(args, name):
            raise ParameterError(f"--{name.replace('_', '-')} is not available yet: {what}")
    if args.global_sparsity is not None:
        if args.sparsity is not None:
            raise ParameterError("give --sparsity or --global-sparsity, not both")
        if args.layerwise:
            raise ParameterError("--global-sparsity prunes all layers together: drop --layerwise")
    elif not args.layerwise:
        raise ParameterError("nothing to do: give --layerwise, or --global-sparsity PERCENT")
    elif args.sparsity is None:
        args.sparsity = list(DEFAULT_SPARSITY)
    for percent in [*(args.sparsity or []), args.global_sparsity]:
        if percent is not None and not 0 <= percent < 100:
            raise ParameterError(f"sparsity {percent:g} is not in percent, from 0 to below 100")
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


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.pruning --help`."""
    args = _parse(argv)
    _check(args)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from l3prune import graph, plan, surgery
    from l3prune.distillation import distill
    from l3prune.evaluation import Report, embedding_mse, measure, plot_history
    from l3prune.networks import l3
    from l3prune.training import Recipe, environment
    from l3prune.weights import load_network, save_network
    from l3prune.windows import open_windows

    recipe = Recipe(
        epochs=args.num_epochs,
        learning_rate=args.learning_rate,
        early_stopping_patience=args.early_stopping_patience,
        min_delta=args.min_delta,
        schedule=args.schedule,
        plateau_patience=args.plateau_patience,
        plateau_factor=args.plateau_factor,
        checkpoint_interval=args.checkpoint_interval,
        batch_norm=args.batch_norm,
        seed=args.random_state,
    )
    model_type = MODEL_TYPES.get(args.model_type, args.model_type)
    teacher = load_network(args.weight_path, model_type)
    weights = graph.conv_weights(teacher)
    if args.global_sparsity is not None:
        masks = plan.plan_global(weights, args.global_sparsity / 100, args.criterion)
    else:
        each = [percent / 100 for percent in args.sparsity]
        masks = plan.plan_layerwise(weights, each[0] if len(each) == 1 else each, args.criterion)
    pruned = surgery.apply_masks(teacher, masks)

    cache_dir = Path(args.cache_dir or Path(args.output_dir) / "cache")
    resumed = args.continue_model_dir is not None
    if resumed:
        run_dir = Path(args.continue_model_dir)
        _check_continued(run_dir, masks)
    train, validation = (
        open_windows(
            folder,
            l3.front_end(teacher).sample_rate,
            cache_dir,
            hop_size=args.hop_size,
            quiet=args.quiet,
        )
        for folder in (args.train_data_dir, args.validation_data_dir)
    )
    if not resumed:
        run_dir = _new_run_dir(args, teacher.name)
        write_json(
            run_dir / "config.json",
            {
                "command": ["python", "-m", "l3prune.pruning", *(argv or sys.argv[1:])],
                "arguments": {name: value for name, value in vars(args).items() if value},
                "versions": environment(),
            },
        )
        save_network(pruned, run_dir / PRUNED, origin={"pruned_from": str(args.weight_path)})

    report = Report()
    states = [("unpruned", teacher), ("pruned", pruned)]
    if args.retrain:
        student = surgery.apply_masks(pruned, masks)
        history = distill(
            student,
            teacher,
            train,
            validation,
            run_dir,
            recipe=recipe,
            batch_size=args.train_batch_size,
            validation_batch_size=args.validation_batch_size,
            train_epoch_size=args.train_epoch_size,
            validation_epoch_size=args.validation_epoch_size,
            cache_dir=cache_dir,
            resume=resumed,
            quiet=args.quiet,
        )
        plot_history(history, run_dir / "history.png")
        states.append(("retrained", student))
    for name, network in states:
        mse = embedding_mse(network, teacher, validation, cache_dir, quiet=args.quiet)
        report = report.with_row(name, validation_mse=mse, **measure(network))
    report.to_json(run_dir / "report.json")
    print(report)
    print(run_dir)


def _check_continued(run_dir: Path, masks: Any) -> None:
    from l3prune.plan import PruningPlan
    from l3prune.training import HISTORY

    if not (run_dir / HISTORY).is_file():
        raise L3PruneError(
            f"{run_dir} has no {HISTORY}, so there is no run to continue there; "
            "give the folder of a run that finished at least one epoch"
        )
    if PruningPlan.load((run_dir / PRUNED).with_suffix(".plan.npz")) != masks:
        raise ParameterError(
            f"the run in {run_dir} was pruned otherwise; continue it with its own weights and "
            f"sparsities (see {run_dir / 'config.json'})"
        )


def _new_run_dir(args: argparse.Namespace, model_name: str) -> Path:
    """A folder that no other run has, at EdgeL3's place below the output folder."""
    subset = Path(args.train_data_dir).resolve().name.rsplit("_", 1)[0]
    parent = make_folder(
        Path(args.output_dir)
        / "embedding"
        / ("pruning_kd" if args.retrain else "pruning")
        / subset
        / (args.model_type or model_name)
    )
    name = args.run_name or datetime.now().strftime("%Y%m%d%H%M%S")
    for attempt in range(1000):
        run_dir = parent / (f"{name}-{attempt}" if attempt else name)
        try:
            run_dir.mkdir()
        except FileExistsError:
            # Jobs of an array start in the same second.
            if args.run_name:
                raise L3PruneError(
                    f"{run_dir} exists; give another --run-name, or --continue-model-dir"
                ) from None
            continue
        return run_dir
    raise L3PruneError(f"no free name for a run in {parent}")


if __name__ == "__main__":
    sys.exit(main())
