"""The classifier's commands: python -m classifier {features,train,cv}."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from classifier.features import extract_features, read_features
from classifier.mlp import Recipe
from classifier.train import cross_validate, train_fold
from l3prune.datasets import load_dataset
from l3prune.errors import command
from l3prune.quiet import load_tensorflow


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands.

    Examples
    --------
    >>> main(["train", "/nowhere", "results", "--fold", "1"])
    2
    """
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)


def _features(arguments: argparse.Namespace) -> None:
    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    load_tensorflow()
    written = extract_features(
        dataset,
        arguments.model,
        arguments.output_dir,
        hop_size=arguments.hop_size,
        folds=arguments.fold,
        batch_size=arguments.batch_size,
        quiet=arguments.quiet,
    )
    print(f"{written} clips embedded into {arguments.output_dir}")


def _train(arguments: argparse.Namespace) -> None:
    recipe = _recipe(arguments)
    features = read_features(arguments.features_dir)
    load_tensorflow()
    result = train_fold(
        features,
        arguments.fold,
        arguments.output_dir,
        seed=arguments.seed,
        recipe=recipe,
        quiet=arguments.quiet,
    )
    print(
        f"fold {result.test_fold}, seed {result.seed}: "
        f"clip accuracy {100 * result.accuracy:.1f} %, "
        f"average class accuracy {100 * result.average_class_accuracy:.1f} %, "
        f"epoch {result.best_epoch} of {result.epochs}"
    )


def _cv(arguments: argparse.Namespace) -> None:
    recipe = _recipe(arguments)
    features = read_features(arguments.features_dir)
    load_tensorflow()
    results = cross_validate(
        features,
        arguments.output_dir,
        seeds=arguments.seeds,
        folds=arguments.fold,
        recipe=recipe,
        quiet=arguments.quiet,
    )
    print(results.table())


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        patience=arguments.patience,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m classifier",
        description="Train and test a classifier on the embeddings of a labelled corpus.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    features = commands.add_parser(
        "features",
        help="embed every clip of a corpus",
        description="Embed every clip of a corpus. An interrupted run continues.",
    )
    features.add_argument("dataset", metavar="DATASET", help="us8k, esc50, …")
    features.add_argument("data_dir", metavar="DATA_DIR", help="root folder of the corpus")
    features.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder for the features")
    features.add_argument(
        "--model", metavar="PATH", required=True, help="file of the embedding network"
    )
    features.add_argument(
        "--hop-size",
        type=float,
        default=0.1,
        metavar="S",
        help="seconds between frames (default: %(default)s)",
    )
    features.add_argument(
        "--fold", type=int, nargs="+", metavar="K", help="only these folds; all by default"
    )
    features.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="frames embedded at once (default: %(default)s)",
    )
    features.set_defaults(run=_features)

    train = commands.add_parser(
        "train",
        help="train and test one fold",
        description="Train and test one fold; the fold before it validates.",
    )
    cv = commands.add_parser(
        "cv",
        help="train and test all folds",
        description="Cross-validate over the official folds. Finished folds are not trained again.",
    )
    for training in (train, cv):
        training.add_argument("features_dir", metavar="FEATURES_DIR", help="folder with features")
        training.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder for the results")
    train.add_argument("--fold", type=int, required=True, metavar="K", help="test fold")
    train.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    cv.add_argument(
        "--fold", type=int, nargs="+", metavar="K", help="only these test folds; all by default"
    )
    cv.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="random seeds (default: 0)"
    )
    recipe = Recipe()
    for training in (train, cv):
        training.add_argument(
            "--epochs",
            type=int,
            default=recipe.epochs,
            metavar="N",
            help="at most so many (default: %(default)s)",
        )
        training.add_argument(
            "--batch-size",
            type=int,
            default=recipe.batch_size,
            metavar="N",
            help="frames per step (default: %(default)s)",
        )
        training.add_argument(
            "--learning-rate",
            type=float,
            default=recipe.learning_rate,
            metavar="X",
            help="of Adam (default: %(default)s)",
        )
        training.add_argument(
            "--patience",
            type=int,
            default=recipe.patience,
            metavar="N",
            help="stop after so many epochs without a lower validation loss (default: %(default)s)",
        )
    train.set_defaults(run=_train)
    cv.set_defaults(run=_cv)
    for each in (features, train, cv):
        each.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
