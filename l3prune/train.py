"""python -m l3prune.train: train a network on the labels of a corpus."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from l3prune.arguments import (
    LABEL_OPTIONS,
    device_options,
    label_options,
    running_options,
    training_options,
)
from l3prune.configs import json_object, read_options, typed_options
from l3prune.datasets.splits import SPLIT
from l3prune.descent import descent_of
from l3prune.errors import ParameterError, command
from l3prune.files import new_folder, write_table
from l3prune.quiet import load_tensorflow
from l3prune.runs import CONFIG, check_begun, check_run_name, told, write_config

#: In a run's folder, once it is finished.
REPORT = "report.json"

POSITIONALS = {
    "network": "a name of create_network whose output are classes, such as dcase2021",
    "dataset": "the corpus, such as esc50 or dcase2021",
    "data_dir": "its root folder, laid out as its authors publish it",
    "output_dir": "where results go",
}


def _parser(optional: Collection[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.train",
        usage="%(prog)s [options] NETWORK DATASET DATA_DIR OUTPUT_DIR",
        allow_abbrev=False,
        description="Train a network on labels of a corpus. Its spectrograms are computed once; "
        "the best epoch is chosen on clips that are split off the training clips, and the test "
        "clips are looked at once, in the end.",
        epilog="Results go to OUTPUT_DIR/labels/DATASET/NETWORK/<run>/: model_best_valid_loss.h5 "
        f"(the best epoch, by --best-by), history.csv, history.png, {SPLIT}, report.json, "
        "labels.json (by class and device), report.md. Exit code: 0 done, 2 wrong input, 75 "
        "stopped by a signal: --continue-model-dir goes on.",
    )
    add = parser.add_argument
    for name, text in POSITIONALS.items():
        add(name, help=text, nargs="?" if name in optional else None)
    add("--config", metavar="FILE", help="JSON with any of these options; flags win over it")
    add = parser.add_argument_group("network").add_argument
    add(
        "--network-arguments",
        type=json_object,
        metavar="JSON",
        help="of its builder, such as '{\"filters\": [16, 8, 16]}'; classes are the corpus's",
    )
    add("--weights", metavar="FILE", help="start from this trained network, not from fresh weights")
    label_options(parser.add_argument_group("clips"))
    training_options(
        parser.add_argument_group("training"),
        epochs=200,
        learning_rate=1e-3,
        seed=0,
        schedule="constant",
        best_by="accuracy",
        patience=200,
        batch_size=16,
        several=True,
    )
    device_options(parser.add_argument_group("devices"))
    running = parser.add_argument_group("running")
    running_options(running)
    running.add_argument("--cache-dir", help="spectrograms; default: OUTPUT_DIR/cache")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.train --help`."""
    args = _parse(argv)
    words = ["python", "-m", "l3prune.train", *(sys.argv[1:] if argv is None else argv)]
    load_tensorflow()
    if isinstance(args.regularization, list):
        _path(args, words)
    else:
        _run(args, words, _parent(args))


def _parent(args: argparse.Namespace) -> Path:
    return Path(args.output_dir) / "labels" / args.dataset / args.network


def _path(args: argparse.Namespace, words: list[str]) -> None:
    """A run for each lambda; those that are finished are found again."""
    from l3prune import lambda_path

    folder = _parent(args) / (args.run_name or "path")
    rows = []
    for value in args.regularization:
        run_dir = folder / f"lambda-{value:g}"
        one = argparse.Namespace(**{**vars(args), "regularization": value})
        one.run_name = run_dir.name
        if (run_dir / REPORT).is_file():
            # All options: one that was given then and is not now differs too.
            check_begun(run_dir, told(one), sorted(vars(one)))
        else:
            one.continue_model_dir = run_dir if (run_dir / CONFIG).is_file() else None
            _run(one, words, folder)
        rows.append(lambda_path.row(run_dir, value))
        lambda_path.write(folder, rows)
    print((folder / lambda_path.PATH).read_text(encoding="utf-8"), end="")
    print(folder)


def _run(args: argparse.Namespace, words: list[str], parent: Path) -> None:
    """One run, in a new folder below `parent` or the one that is continued."""
    import tf_keras as keras

    from l3prune import devices, models
    from l3prune.checkpoints import LATEST
    from l3prune.classification import network_for, objective_of, train_on_labels, trained_part
    from l3prune.corpus import Corpus
    from l3prune.evaluation import Report, measure, plot_history
    from l3prune.retraining import recipe_of
    from l3prune.training import environment
    from l3prune.zero_filters import group_sparsity, make_optimizer

    here = devices.begin(args.distribute, args.precision, args.xla, quiet=args.quiet)
    here.check_batch(args.train_batch_size)
    args.quiet = args.quiet or not here.chief
    recipe = recipe_of(args)
    data = Corpus.of(args, args.dataset, args.data_dir)
    given = args.network_arguments or {}
    keras.utils.set_random_seed(args.random_state)
    if args.weights is None:
        network = network_for(args.network, data.dataset.labels, **given)
    else:
        network = models.load(args.weights, args.network, **given)
        data.check_weights(args.weights)
    data.check(network)
    if recipe.descent.sparse:
        # What cannot be made zero shows before audio is decoded.
        make_optimizer(recipe, trained_part(network), 1)
    objective_of(network, data.dataset.multi_label).figure(recipe.best_by)
    resumed = False
    cache_dir = Path(args.cache_dir or Path(args.output_dir) / "cache")
    with contextlib.ExitStack() as folders:
        folders.enter_context(new_folder(cache_dir))
        if args.continue_model_dir is not None:
            run_dir = Path(args.continue_model_dir)
            names = ("network", "dataset", "network_arguments", "weights", "random_state")
            check_begun(run_dir, told(args), (*names, *LABEL_OPTIONS))
            # The chief's word: a network file system shows the others a new file late.
            resumed = here.told_by_chief("yes" if (run_dir / LATEST).is_file() else "no") == "yes"
        else:
            run_dir = folders.enter_context(here.new_run_dir(parent, args.run_name))
        data.open(network, cache_dir, quiet=args.quiet)
        if args.weights is None:
            # Once more: what it normalises by is known only now.
            keras.utils.set_random_seed(args.random_state)
            network = network_for(args.network, data.dataset.labels, data.train, **given)
            data.normalise_for(network)
        if here.chief:
            write_config(run_dir, words, told(args), environment())
            write_table(run_dir / SPLIT, data.parts())
    with here.watched():
        history = train_on_labels(
            network,
            data.drawn(),
            data.validation,
            run_dir,
            recipe=recipe,
            augment=data.change(network),
            gamma_l1=data.gamma_l1,
            batch_size=args.train_batch_size,
            validation_batch_size=args.validation_batch_size,
            train_epoch_size=args.train_epoch_size,
            validation_epoch_size=args.validation_epoch_size,
            devices=here,
            resume=resumed,
            quiet=args.quiet,
        )
    if not here.chief:
        here.wait()  # for the report: SLURM may end the other tasks soon after the first
        return
    plot_history(history, run_dir / "history.png")
    figures, details = data.figures(network, quiet=args.quiet)
    if recipe.descent.sparse:
        figures["group_sparsity"] = group_sparsity(network)
    report = Report().with_row("trained", **figures, **measure(network))
    data.write_report(run_dir, report, {"trained": details})
    print(report)
    print(run_dir)
    here.wait()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    everything = _parser(POSITIONALS)
    typed = typed_options(argv, everything)
    config = read_options(typed["config"], everything) if "config" in typed else {}
    parser = _parser([name for name in POSITIONALS if name in config])
    parser.set_defaults(**config)
    args = parser.parse_args(argv)
    check_run_name(args.run_name)
    lambdas = args.regularization
    if lambdas is not None and len(lambdas) == 1:
        (args.regularization,) = lambdas
    elif lambdas is not None:
        if len({*lambdas}) < len(lambdas):
            raise ParameterError("--lambda has a value twice; give each once")
        if args.continue_model_dir is not None:
            raise ParameterError(
                "several values of --lambda go on by themselves: give the same command without "
                "--continue-model-dir"
            )
        if args.distribute == "multiworker":
            raise ParameterError("several values of --lambda are for one worker; give one value")
    for value in lambdas or [None]:
        descent_of(argparse.Namespace(**{**vars(args), "regularization": value}))
    return args


if __name__ == "__main__":
    sys.exit(main())
