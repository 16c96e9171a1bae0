"""python -m l3prune.pruning: prune a network, retrain it by distillation, report."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l3prune.audio import find_audio, load_audio
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import new_folder, read_json, write_json
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from l3prune.pruner import Wish
    from l3prune.windows import WindowSource

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
    "--finetune": "fine-tuning on audio-visual correspondence; leave it out for distillation",
    "--include_layers": "depth students; use --layerwise --sparsity",
    "--test-model": "evaluation on audio-visual correspondence; see report.json for the embedding",
}

#: Options that say what goes; flags that make this choice set a --config's aside.
CHOICES = (
    *("layerwise", "sparsity", "global_sparsity", "pattern", "blocks", "budget"),
    *("filterwise", "num_filters", "filter_ratio", "global_filter_ratio"),
)

#: The pruned network before retraining, and the run's arguments, in a run's folder.
PRUNED = "model_pruned.h5"
CONFIG = "config.json"

POSITIONALS = {
    "weight_path": "weights of the unpruned network: an .h5 or .h5.gz file, or a published name",
    "train_data_dir": "audio files, or AVC HDF5 shards, to retrain on",
    "validation_data_dir": "the same, to choose the best epoch and report on",
    "output_dir": "where results go",
}


def _parser(optional: Collection[str] = ()) -> argparse.ArgumentParser:
    """The parser; positionals that a --config gives are `optional`."""
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.pruning",
        usage="%(prog)s [options] WEIGHT_PATH TRAIN_DATA_DIR VALIDATION_DATA_DIR OUTPUT_DIR",
        # A later option must not change what an abbreviation in an old job script means.
        allow_abbrev=False,
        description="Prune the convolutions of an L3 audio network, retrain it by distillation "
        "from the unpruned network, and report. Single weights are held at zero, whole filters are "
        "removed.",
        epilog="Results go to OUTPUT_DIR/embedding/KIND/<subset>/<model type>/<run>/, KIND being "
        "pruning_kd or, filterwise, reduced_kd; without --retrain pruning or reduced. Exit code: 0 "
        "done, 2 wrong input.",
    )
    add = parser.add_argument
    for name, text in POSITIONALS.items():
        add(name, help=text, nargs="?" if name in optional else None)
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
    add("--pattern", metavar="N:M", help="of every M input channels, keep N (2:4)")
    add(
        "--blocks",
        metavar="IxO",
        help="with --layerwise: weights go in blocks of I input channels and O filters",
    )
    add("-filterwise", "--filterwise", action="store_true", help="remove whole filters")
    add(
        "-filters",
        "--num_filters",
        "--num-filters",
        nargs="+",
        type=int,
        metavar="N",
        help="filters of each convolution that stay",
    )
    add(
        "--filter-ratio",
        nargs="+",
        type=float,
        metavar="PERCENT",
        help="filters that go: one for each convolution, or one for all but the last",
    )
    add(
        "--global-filter-ratio",
        type=float,
        metavar="PERCENT",
        help="filters that go of all convolutions but the last together",
    )
    add(
        "--round-to",
        type=int,
        default=1,
        metavar="K",
        help="with a ratio: layers keep multiples of K filters",
    )
    add(
        "--budget",
        metavar="TEXT",
        help='"sparsity=95.45", "filters=50%%", "macs<=1G", "bytes<=450k", shared among the layers',
    )
    add("--allocation", default="uniform", help="of a budget: uniform or erk (%(default)s)")
    add("--criterion", help="what is kept is highest in it (magnitude; filterwise l1)")
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
        old.add_argument(*flags, nargs="?", const="", help=argparse.SUPPRESS)
    for flags in (("-v", "--verbose"), ("-nl", "--no-logging"), ("-sav", "--save-model")):
        old.add_argument(*flags, action="store_true", help=argparse.SUPPRESS)
    old.description = (
        "--gsheet-id, --google-dev-app-name, --gpus, --log-path, --verbose, --no-logging, "
        "--save-model: results are CSV and JSON, every model is saved, TensorFlow takes the "
        "device that it sees"
    )
    for flags, nargs in (
        (("-finetune", "--finetune"), 0),
        (("-layers", "--include_layers"), "+"),
        (("-tst", "--test-model"), 0),
    ):
        if nargs == 0:
            parser.add_argument(*flags, action="store_true", help=argparse.SUPPRESS)
        else:
            parser.add_argument(*flags, nargs=nargs, help=argparse.SUPPRESS)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments from the command line, over those of --config, over the defaults."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    path = before.parse_known_args(argv)[0].config
    config = {} if path is None else _read_config(path)
    parser = _parser([name for name in POSITIONALS if name in config])
    if config:
        # How much to prune is one choice: flags that make it set the file's aside.
        given = _parser(POSITIONALS).parse_known_args(argv)[0]
        chosen = {name for name in CHOICES if getattr(given, name) not in (None, False)}
        if chosen - {"layerwise", "filterwise"} or chosen == {"filterwise"}:
            config = {key: config[key] for key in config if key not in CHOICES}
        elif chosen:
            config = {key: config[key] for key in config if key not in CHOICES or key == "sparsity"}
        parser.set_defaults(**config)
    return parser.parse_args(argv)


def _read_config(path: str) -> dict[str, Any]:
    """The options in a --config file, by their names in the parsed arguments."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("arguments"), dict):
        content = content["arguments"]  # a run's own config.json
    if not isinstance(content, dict):
        raise ParameterError(f"{path} is not a JSON object of options")
    known: dict[str, argparse.Action] = {}
    for action in _parser()._actions:
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


def _check(args: argparse.Namespace) -> None:
    """Everything about the arguments that needs neither data nor TensorFlow."""
    for flag, what in NOT_YET.items():
        if getattr(args, flag[2:].replace("-", "_")):
            raise ParameterError(f"{flag} is not available yet: {what}")
    _check_choice(args)
    for name in (
        "train_epoch_size",
        "validation_epoch_size",
        "train_batch_size",
        "validation_batch_size",
    ):
        size = getattr(args, name)
        if size is not None and size < 1:
            raise ParameterError(f"--{name.replace('_', '-')} {size} is not a positive number")
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
    elif not args.layerwise and (not given or given == ["sparsity"]):
        raise ParameterError(
            "nothing to do: give --layerwise, --filterwise, --pattern, --budget, or "
            "--global-sparsity PERCENT"
        )
    elif not given:
        args.sparsity = list(DEFAULT_SPARSITY)
    if args.blocks is not None and args.sparsity is None:
        raise ParameterError("--blocks goes with --layerwise --sparsity")
    for name in ("sparsity", "global_sparsity", "filter_ratio", "global_filter_ratio"):
        values = getattr(args, name)
        for percent in values if isinstance(values, list) else [values]:
            if percent is not None and not 0 <= percent < 100:
                word = name.replace("global_", "").replace("_", " ")
                raise ParameterError(f"{word} {percent:g} is not in percent, from 0 to below 100")


def _wish(args: argparse.Namespace) -> Wish:
    from l3prune.pruner import Wish

    each = args.filter_ratio if args.filterwise else args.sparsity
    amount = None if each is None else [percent / 100 for percent in each]
    overall = args.global_filter_ratio if args.filterwise else args.global_sparsity
    return Wish(
        filterwise=args.filterwise,
        amount=amount[0] if amount is not None and len(amount) == 1 else amount,
        overall=None if overall is None else overall / 100,
        counts=args.num_filters,
        pattern=args.pattern,
        block=args.blocks,
        budget=args.budget,
        allocation=args.allocation,
        round_to=args.round_to,
        criterion=args.criterion,
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.pruning --help`."""
    args = _parse(argv)
    _check(args)
    load_tensorflow()
    from l3prune import models, surgery
    from l3prune.distillation import distill
    from l3prune.evaluation import Report, embedding_mse, measure, plot_history
    from l3prune.networks import l3
    from l3prune.plan import PruningPlan
    from l3prune.pruner import prune
    from l3prune.training import Recipe
    from l3prune.weights import save_network

    wish = _wish(args)
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
    # The data are sound, whatever the network in the file was trained on.
    teacher = models.load(args.weight_path, model_type, input="waveform")
    pruned, plan = prune(teacher, wish)

    cache_dir = Path(args.cache_dir or Path(args.output_dir) / "cache")
    resumed = args.continue_model_dir is not None
    # What is wrong with the input shows in here, and then no folder stays behind.
    with contextlib.ExitStack() as folders:
        folders.enter_context(new_folder(cache_dir))
        if resumed:
            run_dir = Path(args.continue_model_dir)
            _check_continued(run_dir, pruned)
        else:
            run_dir = folders.enter_context(_new_run_dir(args, teacher.name))
        train, validation = _open_data(args, l3.front_end(teacher).sample_rate, cache_dir)
    if not resumed:
        save_network(pruned, run_dir / PRUNED, origin={"pruned_from": str(args.weight_path)})
    _write_config(run_dir, args, sys.argv[1:] if argv is None else argv)

    report = Report()
    states = [("unpruned", teacher), ("pruned", pruned)]
    if args.retrain:
        student = surgery.remove_filters(pruned, PruningPlan({}))  # a copy
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
        mse = None
        if network.output_shape == teacher.output_shape:
            mse = embedding_mse(network, teacher, validation, cache_dir, quiet=args.quiet)
        report = report.with_row(name, validation_mse=mse, **measure(network))
    report.to_json(run_dir / "report.json")
    print(plan)
    print(report)
    print(run_dir)


def _open_data(
    args: argparse.Namespace, sample_rate: int, cache_dir: Path
) -> tuple[WindowSource, WindowSource]:
    """The windows to train and to validate on.

    Files are decoded into the cache, which may take long; so first comes a look at the headers of
    both sides' files, for which nothing is written.
    """
    from l3prune.windows import open_windows

    folders = (args.train_data_dir, args.validation_data_dir)
    for folder in folders:
        audio = find_audio(folder)
        if not audio or any(Path(folder).rglob("*.h5")):
            # Shards, or an error: neither writes anything.
            open_windows(folder, sample_rate, cache_dir, hop_size=args.hop_size, quiet=args.quiet)
        for path in audio:
            if not _has_audio_header(path):
                load_audio(path)  # says what is wrong
    train, validation = (
        open_windows(folder, sample_rate, cache_dir, hop_size=args.hop_size, quiet=args.quiet)
        for folder in folders
    )
    return train, validation


def _has_audio_header(path: Path) -> bool:
    import soundfile

    try:
        return soundfile.info(path).frames > 0
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return False


def _check_continued(run_dir: Path, pruned: Any) -> None:
    from l3prune.training import BEST, HISTORY, LATEST
    from l3prune.weights import fingerprint, load_network

    for name in (HISTORY, LATEST, BEST, PRUNED):
        if not (run_dir / name).is_file():
            raise L3PruneError(
                f"{run_dir} has no {name}, so there is no run to continue there; "
                "give the folder of a run that finished at least one epoch"
            )
    # The same masks from other weights are another run too.
    if fingerprint(load_network(run_dir / PRUNED)) != fingerprint(pruned):
        raise ParameterError(
            f"the run in {run_dir} was pruned otherwise; continue it with its own weights and "
            f"sparsities (see {run_dir / CONFIG})"
        )


def _write_config(run_dir: Path, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Write what the run was told; when it is continued otherwise, keep what it was told before."""
    from l3prune.training import environment

    arguments = {
        name: value
        for name, value in vars(args).items()
        if value is not None
        and value is not False
        and name not in ("config", "continue_model_dir", "quiet")
    }
    config = {
        "command": ["python", "-m", "l3prune.pruning", *argv],
        "arguments": arguments,
        "versions": environment(),
    }
    if (run_dir / CONFIG).is_file():
        before = read_json(run_dir / CONFIG)
        if before.get("arguments") == arguments:
            return
        config["earlier"] = [*before.pop("earlier", []), before]
    write_json(run_dir / CONFIG, config)


@contextlib.contextmanager
def _new_run_dir(args: argparse.Namespace, model_name: str) -> Iterator[Path]:
    """A folder that no other run has, at EdgeL3's place below the output folder.

    It is removed when the block raises and has written nothing into it.
    """
    subset = Path(args.train_data_dir).resolve().name.rsplit("_", 1)[0]
    parent = (
        Path(args.output_dir)
        / "embedding"
        / (("reduced" if args.filterwise else "pruning") + ("_kd" if args.retrain else ""))
        / subset
        / (args.model_type or model_name)
    )
    with new_folder(parent):
        run_dir = _make_free(parent, args.run_name)
        try:
            yield run_dir
        except BaseException:
            with contextlib.suppress(OSError):
                run_dir.rmdir()
            raise


def _make_free(parent: Path, run_name: str | None) -> Path:
    name = run_name or datetime.now().strftime("%Y%m%d%H%M%S")
    for attempt in range(1000):
        run_dir = parent / (f"{name}-{attempt}" if attempt else name)
        try:
            run_dir.mkdir()
        except OSError as error:
            if not isinstance(error, FileExistsError):
                raise L3PruneError(f"cannot make the folder {run_dir}: {error.strerror}") from error
            if run_name:
                raise L3PruneError(
                    f"{run_dir} exists; give another --run-name, or --continue-model-dir"
                ) from None
            continue  # jobs of an array start in the same second
        return run_dir
    raise L3PruneError(f"no free name for a run in {parent}")


if __name__ == "__main__":
    sys.exit(main())
