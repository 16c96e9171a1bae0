"""python -m l3prune.quantize: distil a network as the int8 or clustered network that it will be."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l3prune.arguments import running_options, training_options
from l3prune.checks import check_sizes, check_whole
from l3prune.errors import command
from l3prune.files import atomic_write
from l3prune.quiet import load_tensorflow
from l3prune.runs import (
    check_begun,
    check_run_name,
    new_run_dir,
    subset_name,
    told,
    write_config,
)

SCHEMES = ("qat", "clustered", "clustered-qat")

#: The result, in a run's folder, with .h5, .l3p, and of int8 .tflite.
RESULT = "quantized"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.quantize",
        usage="%(prog)s [options] WEIGHTS TRAIN_DATA_DIR VALIDATION_DATA_DIR OUTPUT_DIR",
        allow_abbrev=False,
        description="Distil an audio network as the int8 network that it will be (qat), to few "
        "different weights (clustered), or, from such a one, to both (clustered-qat). Pruned "
        "weights stay exactly zero.",
        epilog=f"Results go to OUTPUT_DIR/quantized/<subset>/<scheme>/<run>/: {RESULT}.h5, "
        f"{RESULT}.l3p, of int8 {RESULT}.tflite, history.csv, report.json. Exit code: 0 done, 2 "
        "wrong input, 75 stopped by a signal: --continue-model-dir goes on.",
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="weight file of the network, pruned or not")
    add("train_data_dir", help="folder of audio files or of shards")
    add("validation_data_dir", help="the same, to choose the best epoch and report on")
    add("output_dir", help="where results go")
    add("--scheme", choices=SCHEMES, default="qat", help="(%(default)s)")
    add("--teacher", metavar="FILE", help="the unpruned network; default: WEIGHTS itself")
    add(
        "--clusters",
        type=int,
        default=16,
        metavar="N",
        help="clustered: values of a layer's kernel, zero among them (%(default)s)",
    )
    add("--hop-size", type=float, default=0.5, help="seconds between windows (%(default)s)")
    training = parser.add_argument_group("training")
    training_options(training, epochs=10, learning_rate=1e-4, seed=20180216)
    parser.set_defaults(batch_norm="keep")
    running_options(parser.add_argument_group("running"))
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.quantize --help`."""
    args = _parser().parse_args(argv)
    check_run_name(args.run_name)
    check_whole("clusters", args.clusters, 3)
    load_tensorflow()
    import numpy as np

    from l3prune import graph, models
    from l3prune.checkpoints import LATEST
    from l3prune.distillation import check_pair, open_pair
    from l3prune.evaluation import Report, embedding_mse, measure
    from l3prune.networks import l3
    from l3prune.quantization import count_zeros, to_litert
    from l3prune.quantized_training import distill_clustered, distill_quantized
    from l3prune.retraining import recipe_of
    from l3prune.sizes import packed_bytes
    from l3prune.sparse import SparseModel
    from l3prune.training import environment
    from l3prune.weights import save_network

    recipe = recipe_of(args)
    sizes = {
        "batch_size": args.train_batch_size,
        "validation_batch_size": args.validation_batch_size,
        "train_epoch_size": args.train_epoch_size,
        "validation_epoch_size": args.validation_epoch_size,
    }
    check_sizes(**sizes)
    student = models.load(args.weights)
    teacher = models.load(args.teacher or args.weights)
    check_pair(student, teacher, None)
    rate = l3.front_end(student).sample_rate
    cache_dir = Path(args.output_dir) / "cache"
    train, validation = (
        open_pair(folder, (rate, rate), cache_dir, hop_size=args.hop_size, quiet=args.quiet)
        for folder in (args.train_data_dir, args.validation_data_dir)
    )
    resumed = False
    with contextlib.ExitStack() as folders:
        if args.continue_model_dir is not None:
            run_dir = Path(args.continue_model_dir)
            check_begun(run_dir, told(args), ("scheme", "clusters", "batch_norm"))
            resumed = (run_dir / LATEST).is_file()
        else:
            parent = Path(args.output_dir) / "quantized" / subset_name(args.train_data_dir)
            run_dir = folders.enter_context(new_run_dir(parent / args.scheme, args.run_name))
        words = sys.argv[1:] if argv is None else argv
        line = ["python", "-m", "l3prune.quantize", *words]
        write_config(run_dir, line, told(args), environment())
    options: dict[str, Any] = {
        **sizes,
        "recipe": recipe,
        "hop_size": args.hop_size,
        "cache_dir": cache_dir,
        "resume": resumed,
        "quiet": args.quiet,
    }
    figures: dict[str, Any] = {}
    path = run_dir / RESULT
    if args.scheme == "clustered":
        network = distill_clustered(
            student, teacher, train, validation, run_dir, clusters=args.clusters, **options
        )
        save_network(network, path.with_suffix(".h5"))
    else:
        quantized = distill_quantized(
            student,
            teacher,
            train,
            validation,
            run_dir,
            clustered=args.scheme == "clustered-qat",
            **options,
        )
        network = quantized.network
        content = to_litert(quantized)
        quantized.save(path.with_suffix(".h5"))
        with atomic_write(path.with_suffix(".tflite")) as temporary:
            temporary.write_bytes(content)
        figures = {
            "litert_bytes": len(content),
            "litert_gzip_bytes": len(gzip.compress(content, mtime=0)),
        }
    values = "float32" if args.scheme == "clustered" else "int8"
    SparseModel.from_network(network).save(path.with_suffix(".l3p"), values)
    report = Report()
    for name, each in (("given", student), (args.scheme, network)):
        mse = embedding_mse(each, teacher, validation[0], cache_dir, quiet=args.quiet)
        report = report.with_row(name, validation_mse=mse, **measure(each))
    # Networks that were pruned and have no masks, such as EdgeL3's own, have zeros already.
    before = graph.conv_weights(student)
    rounded = sum(
        np.count_nonzero(before[name].kernel[tuple(zeros.rounded.T)])
        for name, zeros in count_zeros(network).items()
    )
    report = report.with_row(
        args.scheme,
        rounded_to_zero=int(rounded),
        **figures | {"packed_bytes": packed_bytes(network, values)},
    )
    report.to_json(run_dir / "report.json")
    print(report)
    print(run_dir)


if __name__ == "__main__":
    sys.exit(main())
