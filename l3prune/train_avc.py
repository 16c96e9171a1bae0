"""python -m l3prune.train_avc: train an audio-visual network on AVC shards."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l3prune.arguments import (
    device_options,
    options_without_effect,
    running_options,
    training_options,
)
from l3prune.checks import check_sizes
from l3prune.errors import ParameterError, command
from l3prune.options import MODEL_TYPES
from l3prune.quiet import load_tensorflow
from l3prune.runs import (
    check_begun,
    check_run_name,
    subset_name,
    told,
    write_config,
)

if TYPE_CHECKING:
    import tf_keras as keras

#: The audio half of the trained network, in a run's folder.
AUDIO = "audio.h5"

#: L3-Net's name of its test network, and ours.
TINY = ("tiny_L3", "tiny_l3")

#: What a front end is called on L3-Net's command line.
_FRONT_END = ("samp_rate", "n_mels", "n_hop", "n_dft")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.train_avc",
        usage="%(prog)s [options] TRAIN_DATA_DIR VALIDATION_DATA_DIR OUTPUT_DIR",
        allow_abbrev=False,
        description="Train an image network and an audio network together to tell whether an image "
        "and a second of sound belong together. The data are HDF5 shards as python -m "
        "l3prune.avc_data makes them.",
        epilog="Results go to OUTPUT_DIR/embedding/<subset>/<model type>/<run>/: "
        f"model_best_valid_loss.h5, its audio half {AUDIO}, history.csv, report.json. Exit code: 0 "
        "done, 2 wrong input, 75 stopped by a signal: --continue-model-dir goes on.",
    )
    add = parser.add_argument
    add("train_data_dir", help="folder of shards")
    add("validation_data_dir", help="folder of shards, to choose the best epoch and report on")
    add("output_dir", help="where results go")

    network = parser.add_argument_group("network")
    add = network.add_argument
    add(
        "-mt",
        "--model-type",
        help="the audio half: mel256, mel128, linear, sea64, … or L3-Net's names such as "
        "cnn_L3_melspec2; or tiny_L3 (mel256, or with --weights the file's)",
    )
    add("--audio-filters", nargs=8, type=int, metavar="N", help="of the audio convolutions")
    add("--vision-filters", nargs=8, type=int, metavar="N", help="of the image convolutions")
    add(
        "--weights",
        metavar="FILE",
        help="start from this audio-visual network instead of fresh weights",
    )
    for flags, what in (
        (("-srate", "--samp-rate"), "sample rate, Hz"),
        (("-nmels", "--n-mels"), "mel bands"),
        (("-lhop", "--n-hop"), "hop, samples"),
        (("-ndft", "--n-dft"), "DFT length"),
    ):
        add(*flags, type=int, help=f"{what}; must be the model type's, which is the default")

    training = parser.add_argument_group("training")
    training_options(training, epochs=150, learning_rate=1e-4, seed=20171021)
    device_options(parser.add_argument_group("devices"))
    running_options(parser.add_argument_group("running"))
    options_without_effect(
        parser.add_argument_group("accepted from L3-Net's job lines, without effect")
    )
    return parser


def _network(args: argparse.Namespace) -> keras.Model:
    """A fresh network, or the one of --weights; the arguments then have its type."""
    import tf_keras as keras

    from l3prune import avc, models
    from l3prune.networks import create_network

    name = MODEL_TYPES.get(args.model_type, args.model_type)
    tiny = name in TINY
    filters = {
        half: getattr(args, half)
        for half in ("audio_filters", "vision_filters")
        if getattr(args, half) is not None
    }
    if args.weights is not None:
        if filters:
            raise ParameterError(
                f"--{next(iter(filters)).replace('_', '-')} is of fresh weights; the network in "
                f"{args.weights} has its own"
            )
        network = models.load(args.weights, "tiny_l3" if tiny else "avc")
        audio = TINY[0] if tiny else avc.audio_half(network).name
        if not tiny and name not in (None, audio):
            raise ParameterError(
                f"--model-type {args.model_type}: the audio half of the network in {args.weights} "
                f"is {audio}"
            )
        args.model_type = args.model_type or audio
        return network
    keras.utils.set_random_seed(args.random_state)
    if tiny:
        if filters:
            raise ParameterError("tiny_L3 has its own filters; leave out --audio-filters and such")
        return create_network("tiny_l3")
    args.model_type = args.model_type or "mel256"
    return create_network("avc", audio=name or "mel256", **filters)


def _check_front_end(args: argparse.Namespace, network: keras.Model) -> None:
    from l3prune.networks.avc import front_end

    constants = front_end(network)
    wanted = (
        constants.sample_rate,
        constants.n_mels,
        constants.hop_length,
        constants.n_dft,
    )
    for name, value in zip(_FRONT_END, wanted, strict=True):
        given = getattr(args, name)
        if given is not None and given != value:
            raise ParameterError(
                f"--{name.replace('_', '-')} {given}: model type {args.model_type} has {value}"
            )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.train_avc --help`."""
    args = _parser().parse_args(argv)
    check_run_name(args.run_name)
    load_tensorflow()
    from l3prune import avc, devices
    from l3prune.checkpoints import LATEST
    from l3prune.correspondence import (
        check_batch,
        check_rate,
        correspondence,
        train_correspondence,
    )
    from l3prune.datasets.avc import open_pairs
    from l3prune.evaluation import Report, measure, plot_history
    from l3prune.retraining import recipe_of
    from l3prune.training import environment
    from l3prune.weights import save_network

    # Before anything is computed.
    here = devices.begin(args.distribute, args.precision, args.xla, quiet=args.quiet)
    here.check_batch(args.train_batch_size)
    args.quiet = args.quiet or not here.chief
    recipe = recipe_of(args)
    network = _network(args)
    _check_front_end(args, network)
    rate = int(network.inputs[1].shape[-1])
    train, validation = (
        open_pairs(folder, rate) for folder in (args.train_data_dir, args.validation_data_dir)
    )
    for pairs in (train, validation):
        check_rate(network, pairs)
    sizes = {
        "batch_size": args.train_batch_size,
        "validation_batch_size": args.validation_batch_size,
        "train_epoch_size": args.train_epoch_size,
        "validation_epoch_size": args.validation_epoch_size,
    }
    check_sizes(**sizes)
    check_batch(train, args.train_batch_size)
    resumed = False
    with contextlib.ExitStack() as folders:
        if args.continue_model_dir is not None:
            run_dir = Path(args.continue_model_dir)
            names = ("model_type", "audio_filters", "vision_filters", "batch_norm")
            check_begun(run_dir, told(args), names)
            # The chief's word: a network file system shows the others a new file late.
            resumed = here.told_by_chief("yes" if (run_dir / LATEST).is_file() else "no") == "yes"
        else:
            parent = Path(args.output_dir) / "embedding" / subset_name(args.train_data_dir)
            parent = parent / args.model_type
            run_dir = folders.enter_context(here.new_run_dir(parent, args.run_name))
        if here.chief:
            words = sys.argv[1:] if argv is None else argv
            write_config(
                run_dir, ["python", "-m", "l3prune.train_avc", *words], told(args), environment()
            )
    if here.strategy is not None and not args.quiet:
        print(here.told(args.train_batch_size))
    with here.watched():
        history = train_correspondence(
            network,
            train,
            validation,
            run_dir,
            recipe=recipe,
            **sizes,
            devices=here,
            resume=resumed,
            quiet=args.quiet,
        )
    if not here.chief:
        here.wait()  # for the report: SLURM may end the other tasks soon after the first
        return
    plot_history(history, run_dir / "history.png")
    figures: dict[str, Any] = correspondence(
        network,
        validation,
        batch_size=args.validation_batch_size,
        epoch_size=args.validation_epoch_size,
        quiet=args.quiet,
    )
    report = Report()
    if args.model_type not in TINY:
        audio = avc.audio_half(network)
        save_network(audio, run_dir / AUDIO, origin={"from": "audio half of the best epoch"})
        figures |= measure(audio)
    report = report.with_row("trained", **figures)
    report.to_json(run_dir / "report.json")
    print(report)
    print(run_dir)
    here.wait()


if __name__ == "__main__":
    sys.exit(main())
