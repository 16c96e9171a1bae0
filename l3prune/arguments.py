"""The arguments of python -m l3prune.pruning, with their defaults and help."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from l3prune.configs import layer_percent
from l3prune.descent import descent_options

#: EdgeL3's own default for its eight convolutions, in percent.
DEFAULT_SPARSITY = (0, 60, 60, 70, 50, 70, 70, 80)

#: Criteria that score filters on data, those of `activations`.
FROM_DATA = ("mean_activation", "apoz", "taylor")

POSITIONALS = {
    "weight_path": "weights of the unpruned network: an .h5 or .h5.gz file, or a published name",
    "train_data_dir": "audio files, or AVC HDF5 shards, to retrain on",
    "validation_data_dir": "the same, to choose the best epoch and report on",
    "output_dir": "where results go",
}


#: Ways to share training between devices, and precisions; see `devices`.
DISTRIBUTE = ("none", "mirrored", "multiworker")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


def new_parser(
    optional: Collection[str] = (), without: Collection[str] = ()
) -> argparse.ArgumentParser:
    """The parser; positionals that a --config gives are `optional`, others it is `without`.

    Examples
    --------
    >>> new_parser().parse_args(["w.h5", "train", "valid", "out"]).output_dir
    'out'
    """
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.pruning",
        usage="%(prog)s [options] WEIGHT_PATH TRAIN_DATA_DIR VALIDATION_DATA_DIR OUTPUT_DIR",
        # A later option must not change what an abbreviation in an old job script means.
        allow_abbrev=False,
        description="Prune the convolutions of an L3 audio network, or take a smaller network; "
        "retrain it by distillation from the whole network, on audio-visual correspondence or on "
        "labels, and report. Single weights are held at zero, whole filters are removed.",
        epilog="Results go to OUTPUT_DIR/embedding/KIND/<subset>/<model type>/<run>/, KIND being "
        "pruning_kd or, for fewer filters or layers, reduced_kd; with --finetune "
        "pruning_finetune_layerwise or pruning_finetune_filterwise, with --labels pruning_labels; "
        "without --retrain pruning or reduced. Exit code: 0 done, 2 wrong input, 75 stopped by a "
        "signal: --continue-model-dir goes on.",
    )
    add = parser.add_argument
    for name, text in POSITIONALS.items():
        if name in without:
            parser.set_defaults(**{name: None})
        else:
            add(name, help=text, nargs="?" if name in optional else None)
    add("--config", metavar="FILE", help="JSON with any of these options; flags win over it")

    group = parser.add_argument_group
    _network(group("the network to prune or train, if not the whole one"))
    pruning = group("pruning")
    _weights(pruning)
    _filters(pruning)
    _budget_and_criterion(pruning)
    _retraining(group("retraining"))
    _labels(group("retraining on labels"))
    _changing_masks(group("masks that change in retraining; steps are batches"))
    device_options(group("devices to retrain on"))
    running = group("running")
    running_options(running)
    running.add_argument(
        "--cache-dir", help="decoded audio and teacher embeddings; default: OUTPUT_DIR/cache"
    )
    options_without_effect(group("accepted from EdgeL3's job lines, without effect"))
    return parser


def _network(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-layers",
        "--include_layers",
        "--include-layers",
        nargs="+",
        type=int,
        metavar="0|1",
        help="eight zeros and ones: the convolutions that stay",
    )
    add(
        "-fcl",
        "--from-conv-layer",
        type=int,
        metavar="K",
        help="the embedding is the raw output of convolution K, 5 … 8; later ones go",
    )
    add(
        "--student",
        metavar="NETWORK",
        help="another network: a name of create_network, with fresh weights (sea64), or a file",
    )


def _weights(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
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


def _filters(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
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
        "--layer-ratio",
        nargs="+",
        type=layer_percent,
        metavar="LAYER=PERCENT",
        help="filters, or units of dense layers, that go of the layers named (conv_2=50)",
    )
    add(
        "--fresh",
        nargs="+",
        metavar="LAYER",
        help="with --layer-ratio: layers that get fresh weights when one of them loses filters",
    )
    add(
        "--zero-filters",
        action="store_true",
        help="remove all filters that training made zero with their BatchNorm; the output stays",
    )
    add(
        "--round-to",
        type=int,
        default=1,
        metavar="K",
        help="with a ratio: layers keep multiples of K filters",
    )


def _budget_and_criterion(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--budget",
        metavar="TEXT",
        help='"sparsity=95.45", "filters=50%%", "macs<=1G", "bytes<=450k" or "ms<=20" (measured on '
        "this machine), shared among the layers",
    )
    add(
        "--allocation",
        default="uniform",
        help="of a budget: uniform, erk or sensitivity (%(default)s)",
    )
    add(
        "--sensitivity",
        metavar="DIR",
        help="with --allocation sensitivity: the folder of a python -m l3prune.sensitivity",
    )
    add(
        "--criterion",
        help="what is kept is highest in it (magnitude; filterwise l1, or, from the training data, "
        f"{', '.join(FROM_DATA)})",
    )
    add(
        "--criterion-windows",
        type=int,
        default=512,
        metavar="N",
        help="training windows for a criterion from data, 0 for all (%(default)s)",
    )
    add(
        "-mt",
        "--model-type",
        help="what the weight file holds; default: detected (names of create_network, "
        "or EdgeL3's such as cnn_L3_melspec2)",
    )


def _retraining(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-ret", "--retrain", action="store_true", help="distil from the unpruned network")
    add(
        "-finetune",
        "--finetune",
        action="store_true",
        help="with --retrain: instead, train an audio-visual network on AVC shards, its image half "
        "frozen",
    )
    add(
        "-tst",
        "--test-model",
        action="store_true",
        help="report the accuracy of the audio-visual network in WEIGHT_PATH before and after",
    )
    training_options(group, epochs=300, learning_rate=1e-5, seed=20180216)
    add(
        "--reduction",
        help="the student's embedding is smaller or hears another front end: pca (its target is "
        "the teacher's first principal components) or linear (a map learned along)",
    )
    add("--hop-size", type=float, default=0.5, help="seconds between windows (%(default)s)")


def _labels(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--labels",
        metavar="DATASET",
        help="TRAIN_DATA_DIR is this corpus (esc50, dcase2021, …), and there is no "
        "VALIDATION_DATA_DIR: clips to validate on are split off the training clips",
    )
    group.add_argument(
        "--iterative",
        action="store_true",
        help="with --layer-ratio and --retrain: layer after layer, in the order given, each "
        "retrained before the next",
    )
    group.add_argument(
        "--float16",
        action="store_true",
        help="report on the network in 16 bits too, and write it: as weights, and as LiteRT file",
    )
    group.add_argument(
        "--from-scratch",
        action="store_true",
        help="with --filterwise and --retrain: all layers begin with fresh weights after the cut",
    )
    label_options(group)


def training_options(
    group: argparse._ArgumentGroup,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    schedule: str = "plateau",
    best_by: str = "loss",
    patience: int = 10,
    batch_size: int = 64,
    several: bool = False,
) -> None:
    """Add the options of a training recipe, with these defaults; see `descent.descent_options`.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> training_options(
    ...     parser.add_argument_group("training"), epochs=9, learning_rate=1e-3, seed=0
    ... )
    >>> parser.parse_args(["-tbs", "8"]).train_batch_size
    8
    """
    add = group.add_argument
    add("-e", "--num-epochs", type=int, default=epochs, help="at most (%(default)s)")
    add("-lr", "--learning-rate", type=float, default=learning_rate, help="(%(default)s)")
    add("-tes", "--train-epoch-size", type=int, help="batches an epoch; default: all data once")
    add("-ves", "--validation-epoch-size", type=int, help="the same for validation")
    add("-tbs", "--train-batch-size", type=int, default=batch_size, help="inputs (%(default)s)")
    add("-vbs", "--validation-batch-size", type=int, default=64, help="inputs (%(default)s)")
    add(
        "-ci",
        "--checkpoint-interval",
        type=int,
        default=10,
        help="epochs between numbered checkpoints, 0 for none (%(default)s)",
    )
    add("--early-stopping-patience", type=int, default=patience, help="epochs (%(default)s)")
    add("--min-delta", type=float, default=1e-4, help="of early stopping (%(default)s)")
    add(
        "--checkpoint-minutes",
        type=float,
        default=10,
        help="between checkpoints within an epoch, 0 for none (%(default)s)",
    )
    add(
        "--schedule",
        default=schedule,
        help="learning rate: plateau, cosine, constant, linear (%(default)s)",
    )
    add(
        "--final-learning-rate",
        type=float,
        default=0.0,
        metavar="RATE",
        help="cosine, linear: what it comes to in the end (%(default)s)",
    )
    add(
        "--cosine-interval",
        type=int,
        default=0,
        metavar="BATCHES",
        help="from one rate of the cosine to the next; 0 is an epoch (%(default)s)",
    )
    add(
        "--decay-from", type=int, default=0, metavar="N", help="linear: epochs before (%(default)s)"
    )
    add("--decay-to", type=int, metavar="N", help="linear: epoch of the end; default: the last")
    add(
        "--best-by",
        default=best_by,
        help="validation figure that chooses the best epoch: loss; accuracy; or lwlrap, of several "
        "classes a clip (%(default)s)",
    )
    add(
        "--best-from",
        type=int,
        default=0,
        metavar="N",
        help="the first N epochs cannot be the best (%(default)s)",
    )
    add("--plateau-patience", type=int, default=5, help="epochs (%(default)s)")
    add("--plateau-factor", type=float, default=0.1, help="(%(default)s)")
    add(
        "--batch-norm",
        default="train",
        help="train; freeze, which needs fewer steps; or keep, to go on from a trained network "
        "(%(default)s)",
    )
    add("-r", "--random-state", "--seed", type=int, default=seed, help="(%(default)s)")
    descent_options(group, several=several)


#: What `label_options` adds, by the names in parsed arguments.
LABEL_OPTIONS = (
    *("test_fold", "validation_ratio", "split_seed", "fill", "sampler", "augment", "gamma_l1"),
)


def label_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of how a labelled corpus is split, and how it is trained on.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> label_options(parser.add_argument_group("clips"))
    >>> parser.parse_args([]).fill
    'repeat'
    """
    add = group.add_argument
    add("--test-fold", type=int, metavar="N", help="fold to report on; default: the last")
    add(
        "--validation-ratio",
        type=float,
        default=0.3,
        help="of training clips, at most 0.5, where the corpus has groups, such as places, or two "
        "folds; else the fold before the test fold validates (%(default)s)",
    )
    add("--split-seed", type=int, default=0, help="of the groups drawn (%(default)s)")
    add("--fill", default="repeat", help="short clips: repeat, or zeros (%(default)s)")
    add(
        "--sampler",
        default="uniform",
        help="of training clips: uniform, or balanced, class after class (%(default)s)",
    )
    add(
        "--augment",
        nargs="+",
        metavar="CHANGE",
        help="of training batches: spec_augment, and mixup, which makes half as many of them",
    )
    add(
        "--gamma-l1",
        type=float,
        default=0.0,
        metavar="STRENGTH",
        help="of network slimming's penalty on the scales of BatchNorm behind convolutions, by "
        "which --criterion bn_gamma then tells filters apart (%(default)s)",
    )


def _changing_masks(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--mask-schedule",
        metavar="KIND",
        help="constant: weights go at --begin-step; polynomial: little by little; layer-by-layer; "
        "rigl: gone from the start, they move where they help (default: gone and fixed)",
    )
    add(
        "--frequency",
        type=int,
        metavar="STEPS",
        help="polynomial, rigl, --ramp: between changes (100)",
    )
    add("--begin-step", type=int, metavar="STEP", help="constant, polynomial: first change (0)")
    add(
        "--end-step",
        type=int,
        metavar="STEP",
        help="last change (polynomial: half of all steps; rigl: three quarters)",
    )
    add(
        "--initial-sparsity",
        type=float,
        metavar="PERCENT",
        help="polynomial: at the first change (0)",
    )
    add(
        "--epochs-per-layer",
        type=int,
        metavar="N",
        help="layer-by-layer: epochs from one layer to the next (shared out evenly)",
    )
    add("--ramp", action="store_true", help="layer-by-layer: each layer little by little")
    add("--rigl-alpha", type=float, metavar="FRACTION", help="rigl: what moves at first (0.3)")


def running_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of how a run is carried out.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> running_options(parser.add_argument_group("running"))
    >>> parser.parse_args(["--run-name", "first"]).run_name
    'first'
    """
    add = group.add_argument
    add("-cmd", "--continue-model-dir", metavar="DIR", help="go on with the run in this folder")
    add("--run-name", help="last part of the run's folder; default: the time")
    add("--quiet", action="store_true", help="no progress; only the report and warnings")


def device_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of the devices that training computes on; see `devices.begin`.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> device_options(parser.add_argument_group("devices"))
    >>> parser.parse_args(["--distribute", "mirrored"]).distribute
    'mirrored'
    """
    add = group.add_argument
    add(
        "--distribute",
        metavar="WAY",
        default="none",
        help="mirrored: on all GPUs of this host; multiworker: on those of all tasks of a SLURM "
        "step, or of the workers in TF_CONFIG; batches stay as large, and are shared (%(default)s)",
    )
    add(
        "--precision",
        metavar="TYPE",
        default="float32",
        help=f"in which layers compute: {', '.join(PRECISIONS)}; weights stay float32 "
        "(%(default)s)",
    )
    add("--xla", action="store_true", help="compile training steps by XLA")


def options_without_effect(group: argparse._ArgumentGroup) -> None:
    """Add the options of L3-Net's and EdgeL3's job lines that have no counterpart.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> options_without_effect(parser.add_argument_group("accepted"))
    >>> parser.parse_args(["--gpus", "4", "--verbose"]).gpus
    '4'
    """
    add = group.add_argument
    for flags in (
        ("-gsid", "--gsheet-id"),
        ("-gdan", "--google-dev-app-name"),
        ("--gpus",),
        ("-lp", "--log-path"),
    ):
        add(*flags, nargs="?", const="", help=argparse.SUPPRESS)
    for flags in (("-v", "--verbose"), ("-nl", "--no-logging"), ("-sav", "--save-model")):
        add(*flags, action="store_true", help=argparse.SUPPRESS)
    group.description = (
        "--gsheet-id, --google-dev-app-name, --gpus, --log-path, --verbose, --no-logging, "
        "--save-model: results are CSV and JSON, every model is saved, and --distribute chooses "
        "devices"
    )
