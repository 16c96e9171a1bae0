"""The classifier's commands: python -m classifier {features,train,cv,predict}."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from classifier.features import extract_features, read_features
from classifier.inputs import MODES, Inputs
from classifier.mlp import Recipe
from classifier.model import RECIPES, AnyRecipe
from classifier.predict import check_output, open_result, predict_files, write_predictions
from classifier.search import Search
from classifier.shallow import KERNELS
from classifier.train import cross_validate, train_fold
from l3prune.audio import find_audio
from l3prune.datasets import load_dataset
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.quiet import load_tensorflow


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one of the commands.

    Examples
    --------
    >>> main(["train", "/nowhere", "results", "--fold", "1"])
    2
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _features(arguments: argparse.Namespace) -> None:
    dataset = load_dataset(arguments.dataset, arguments.data_dir, augmented=arguments.augmented)
    if dataset.multi_label:
        raise ParameterError(
            f"{dataset.name} has several classes a clip, and these classifiers know one; train a "
            "network by python -m l3prune.train"
        )
    load_tensorflow()
    written = extract_features(
        dataset,
        arguments.model,
        arguments.output_dir,
        hop_size=arguments.hop_size,
        folds=arguments.fold,
        batch_size=arguments.batch_size,
        engine=arguments.engine,
        quiet=arguments.quiet,
    )
    print(f"{written} clips embedded into {arguments.output_dir}")


def _train(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    features = read_features(arguments.features_dir)
    load_tensorflow()
    result = train_fold(
        features, arguments.fold, arguments.output_dir, seed=arguments.seed, **settings
    )
    epochs = "" if result.best_epoch is None else f", best epoch {result.best_epoch}"
    print(
        f"fold {result.test_fold}, seed {result.seed}: "
        f"clip accuracy {100 * result.accuracy:.1f} %, "
        f"average class accuracy {100 * result.average_class_accuracy:.1f} %{epochs}"
    )
    if settings["parameter_search"]:
        chosen = ", ".join(f"{name} {value}" for name, value in result.parameters.items())
        print(f"chosen: {chosen}")


def _cv(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    features = read_features(arguments.features_dir)
    load_tensorflow()
    results = cross_validate(
        features, arguments.output_dir, seeds=arguments.seeds, folds=arguments.fold, **settings
    )
    print(results.table())


def _predict(arguments: argparse.Namespace) -> int:
    paths: list[Path] = []
    for given in map(Path, arguments.audio):
        if given.is_dir():
            paths += find_audio(given)
        elif given.exists():
            paths.append(given)
        else:
            raise L3PruneError(f"no such file or folder: {given}")
    if not paths:
        raise L3PruneError(f"no audio files (wav, flac, ogg, mp3) in {', '.join(arguments.audio)}")
    if arguments.output:
        check_output(arguments.output)
    predictor = open_result(arguments.classifier)
    top = min(3, len(predictor.labels)) if arguments.top is None else arguments.top
    load_tensorflow()
    from tqdm import tqdm

    from l3prune.embedding import L3PruneWarning

    reasons: list[str] = []

    def skip(reason: str) -> None:
        reasons.append(reason)
        tqdm.write(f"skipped: {' '.join(reason.split())}", file=sys.stderr)

    with warnings.catch_warnings():
        # Short and silent recordings are classified as those of the corpus were.
        warnings.simplefilter("ignore", L3PruneWarning)
        predictions = predict_files(
            paths,
            predictor,
            model=arguments.model,
            top=top,
            batch_size=arguments.batch_size,
            quiet=arguments.quiet,
            skipped=skip,
        )
    if not predictions:
        raise L3PruneError("every file was skipped; nothing was predicted")
    for prediction in predictions:
        print(prediction)
    if arguments.output:
        write_predictions(predictions, arguments.output)
    return 1 if reasons else 0


#: Flags of one kind of model -> (its recipe's attribute, type, choices, help).
RECIPE_FLAGS: dict[str, tuple[str, str, type, Sequence[str] | None, str]] = {
    "--epochs": ("mlp", "epochs", int, None, "at most so many"),
    "--batch-size": ("mlp", "batch_size", int, None, "rows per step"),
    "--learning-rate": ("mlp", "learning_rate", float, None, "of Adam"),
    "--patience": (
        "mlp",
        "patience",
        int,
        None,
        "stop after so many epochs without a lower validation loss",
    ),
    "--weight-decay": ("mlp", "weight_decay", float, None, "of the kernels"),
    "--C": ("svm", "C", float, None, "penalty"),
    "--kernel": ("svm", "kernel", str, KERNELS, ", ".join(KERNELS)),
    "--tol": ("svm", "tol", float, None, "where the solver stops"),
    "--trees": ("rf", "trees", int, None, "how many"),
}


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `train_fold` and `cross_validate` take alike."""
    kind = arguments.model_type
    given = {}
    for flag, (of_kind, name, *_) in RECIPE_FLAGS.items():
        value = getattr(arguments, name)
        if value is None:
            continue
        if of_kind != kind:
            raise ParameterError(
                f"{flag} is of --model-type {of_kind}, but --model-type is {kind}; leave it out"
            )
        given[name] = value
    recipe: AnyRecipe = RECIPES[kind](**given)
    parameter_search = None
    if arguments.parameter_search:
        ratio = arguments.parameter_search_valid_ratio
        if ratio is not None and not arguments.parameter_search_no_valid_fold:
            raise ParameterError(
                "--parameter-search-valid-ratio needs --parameter-search-no-valid-fold"
            )
        parameter_search = Search(
            valid_fold=not arguments.parameter_search_no_valid_fold,
            train_with_valid=not arguments.parameter_search_train_without_valid,
            **({} if ratio is None else {"valid_ratio": ratio}),
        )
    elif (
        arguments.parameter_search_no_valid_fold
        or arguments.parameter_search_train_without_valid
        or arguments.parameter_search_valid_ratio is not None
    ):
        raise ParameterError("--parameter-search-… flags need --parameter-search")
    return {
        "recipe": recipe,
        "inputs": Inputs(arguments.features_mode, arguments.non_overlap, arguments.min_max),
        "parameter_search": parameter_search,
        "quiet": arguments.quiet,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m classifier",
        description="Train and test a classifier on the embeddings of a labelled corpus.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    features = _add_features(commands)
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
    for training in (train, cv):
        _add_settings(training)
    train.set_defaults(run=_train)
    cv.set_defaults(run=_cv)
    predict = _add_predict(commands)
    for each in (features, train, cv, predict):
        each.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_features(commands: Any) -> argparse.ArgumentParser:
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
    _add_batch_size(features)
    features.add_argument(
        "--engine",
        metavar="NAME",
        help="dense, sparse or auto, as python -m l3prune has it (dense; sparse for packed files)",
    )
    features.add_argument(
        "--augmented",
        action="store_true",
        help="augmented copies of clips too (us8k: CLIP_anything.wav); they are only trained on",
    )
    features.set_defaults(run=_features)
    return features


def _add_settings(training: argparse.ArgumentParser) -> None:
    add = training.add_argument
    add(
        "--model-type",
        choices=list(RECIPES),
        default="mlp",
        help="perceptron, support vector machine or random forest (default: %(default)s)",
    )
    add(
        "--features-mode",
        choices=MODES,
        default="framewise",
        help="a row per frame, or of statistics per clip (default: %(default)s)",
    )
    add("--non-overlap", action="store_true", help="only frames of a clip that do not overlap")
    add("--min-max", action="store_true", help="min-max scaling before the standardisation")
    defaults = {
        field.name: value
        for cls in (Recipe, *RECIPES.values())
        for field, value in zip(fields(cls), asdict(cls()).values(), strict=True)
    }
    for flag, (kind, name, of_type, choices, text) in RECIPE_FLAGS.items():
        add(
            flag,
            type=of_type,
            choices=choices,
            dest=name,
            metavar="KERNEL" if choices else "N" if of_type is int else "X",
            help=f"{kind}: {text} (default: {defaults[name]})",
        )
    add(
        "--parameter-search",
        action="store_true",
        help="choose the main parameters by validation accuracy, then train again with the "
        "validation clips",
    )
    add(
        "--parameter-search-no-valid-fold",
        action="store_true",
        help="a part of all training folds validates, instead of the fold before the test fold",
    )
    add(
        "--parameter-search-valid-ratio",
        type=float,
        metavar="X",
        help="how large a part of their clips (default: 0.15)",
    )
    add(
        "--parameter-search-train-without-valid",
        action="store_true",
        help="keep the chosen model as it is",
    )


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    predict = commands.add_parser(
        "predict",
        help="classes of audio files",
        description="Embed audio files and print their most probable classes.",
        epilog="Exit code: 0 all predicted, 1 some files were skipped (each is named), 2 wrong "
        "arguments or no file predicted.",
    )
    add = predict.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="audio files, and folders searched for them")
    add(
        "--classifier",
        required=True,
        metavar="RESULT",
        help="folder fold<k>/seed<s> of results, or its classifier.npz or result.json",
    )
    add("--model", metavar="PATH", help="file of the embedding network, if it was moved")
    add("--top", type=int, metavar="K", help="classes named per file (default: 3)")
    add("--output", metavar="FILE", help="write the classes to a .csv or .json file too")
    _add_batch_size(predict)
    predict.set_defaults(run=_predict)
    return predict


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="frames embedded at once (default: %(default)s)",
    )


if __name__ == "__main__":
    sys.exit(main())
