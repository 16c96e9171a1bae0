"""python -m l3prune.sensitivity: how much each layer's pruning costs; lists for budgets from it."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l3prune.allocation import ALLOCATIONS
from l3prune.budget import MODES, Budget, parse_budget
from l3prune.curves import (
    AMOUNTS,
    RECORD,
    TABLE,
    UNPRUNED,
    Row,
    curves,
    plot,
    read_rows,
    tidy,
)
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import locked, new_folder, read_json, write_json
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    import tf_keras as keras

    from l3prune.scan import Candidates, Spread

METRICS = ("mse", "accuracy", "avc")

#: In the output folder.
FIGURE = "sensitivity.png"
LISTS = "lists.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.sensitivity",
        usage="%(prog)s WEIGHTS VALIDATION_DATA OUTPUT_DIR [options]",
        allow_abbrev=False,
        description="Prune one layer of an audio network at a time, the first included, by several "
        "amounts, and measure how far the embedding moves. From the table, share a budget out "
        "among the layers.",
        epilog=f"OUTPUT_DIR receives {TABLE}, {RECORD}, {FIGURE} and, with --budget, {LISTS}. The "
        "same command again measures only what is missing. Exit code: 0 done, 2 wrong input.",
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="an .h5 or .h5.gz file, or a published name")
    add("validation_data", metavar="VALIDATION_DATA", help="audio files, or AVC HDF5 shards")
    add("output_dir", metavar="OUTPUT_DIR", help="where results go")
    add("--quiet", action="store_true", help="no progress; only the tables")

    add = parser.add_argument_group("what is pruned").add_argument
    add("--mode", default="layerwise", help="layerwise: weights; filterwise: filters (%(default)s)")
    add("--criterion", help="what is kept is highest in it (magnitude; filterwise l1)")
    add(
        "--amounts",
        nargs="+",
        type=float,
        default=list(AMOUNTS),
        metavar="PERCENT",
        help=f"of a layer ({' '.join(map(str, AMOUNTS))})",
    )

    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--metric",
        default="mse",
        help="mse of the embedding; besides, accuracy: of a classifier that is trained on each "
        "network's embeddings, or avc: on audio-visual correspondence, by a network with both "
        "halves (%(default)s)",
    )
    add("--max-windows", type=int, default=512, help="evenly spread; 0 for all (%(default)s)")
    add("--hop-size", type=float, default=0.5, help="seconds between windows (%(default)s)")
    add("--batch-size", type=int, default=64, help="windows (%(default)s)")
    add("--cache-dir", help="decoded audio and teacher embeddings; default: OUTPUT_DIR/cache")
    add("--dataset", metavar="NAME", help="for accuracy: us8k, esc50, …")
    add("--data-dir", metavar="DIR", help="for accuracy: root folder of the corpus")
    add(
        "--classifier-args",
        metavar="TEXT",
        help='for accuracy: options of python -m classifier cv, such as "--fold 1 --seeds 0 1"',
    )

    add = parser.add_argument_group("lists for budgets").add_argument
    add(
        "--budget",
        action="append",
        default=[],
        metavar="TEXT",
        help='"sparsity=95.45", "macs<=1G", "bytes<=450k", "filters=0.5" (of filters, removed); '
        "repeatable",
    )
    add(
        "--allocation",
        nargs="+",
        default=list(ALLOCATIONS),
        metavar="NAME",
        help=f"how it is shared out ({' '.join(ALLOCATIONS)})",
    )
    add(
        "--lists-only",
        action="store_true",
        help=f"measure nothing: take {TABLE} as it is; VALIDATION_DATA is not read",
    )
    return parser


def _check(args: argparse.Namespace) -> list[Budget]:
    """Everything about the arguments that needs neither data nor TensorFlow."""
    for option, values, known in (
        ("--mode", [args.mode], MODES),
        ("--metric", [args.metric], METRICS),
        ("--allocation", args.allocation, ALLOCATIONS),
    ):
        for value in values:
            if value not in known:
                raise ParameterError(f"{option} {value} is unknown; known: {', '.join(known)}")
    args.amounts = tidy(args.amounts)
    args.allocation = list(dict.fromkeys(args.allocation))
    if args.max_windows < 0:
        raise ParameterError(f"--max-windows {args.max_windows} is negative; 0 takes all")
    if args.batch_size < 1:
        raise ParameterError(f"--batch-size {args.batch_size} is not a positive number")
    budgets = [parse_budget(text) for text in args.budget]
    for budget in budgets:
        if budget.kind == "ms":
            raise ParameterError(
                f"--budget {budget} is met by measuring pruned networks: give it to "
                "python -m l3prune.pruning, here one of macs"
            )
        if budget.kind == "filters" and args.mode == "layerwise":
            raise ParameterError(f"--budget {budget} is of filters: give --mode filterwise")
    if args.lists_only and not budgets:
        raise ParameterError("--lists-only has nothing to do; give --budget")
    extra = [
        f"--{name.replace('_', '-')}"
        for name in ("dataset", "data_dir", "classifier_args")
        if getattr(args, name) is not None
    ]
    if args.metric != "accuracy" and extra:
        raise ParameterError(f"{', '.join(extra)} without effect; give --metric accuracy")
    if args.metric == "accuracy":
        if args.dataset is None or args.data_dir is None:
            raise ParameterError("--metric accuracy needs --dataset NAME and --data-dir DIR")
        if importlib.util.find_spec("classifier") is None:
            raise ParameterError("--metric accuracy needs the package classifier; install it")
        try:
            args.classifier_args = shlex.split(args.classifier_args or "")
        except ValueError as error:
            raise ParameterError(f"--classifier-args {args.classifier_args!r}: {error}") from error
    return budgets


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.sensitivity --help`."""
    args = _parser().parse_args(argv)
    budgets = _check(args)
    load_tensorflow()
    from l3prune import avc, models
    from l3prune.scan import Candidates

    whole = None
    if args.metric == "avc":
        whole = models.load(args.weights, "avc", input="waveform")
        teacher = avc.audio_half(whole)
    else:
        # The data are sound, whatever the network in the file was trained on.
        teacher = models.load_audio(args.weights, input="waveform")
    candidates = Candidates(teacher, args.mode, args.criterion)
    folder = Path(args.output_dir)
    if args.lists_only:
        _check_record(folder, _identity(args, candidates))
        rows = read_rows(folder / TABLE)
    else:
        # What cannot be done shows before hours of measuring. Of a budget only the largest amounts
        # matter.
        candidates.counts(args.amounts)
        reach = {layer: [(0.0, 0.0), (args.amounts[-1] / 100, 1.0)] for layer in candidates.scanned}
        if not (folder / TABLE).exists():
            _allocate(args, budgets, candidates, reach | _whole(candidates))
        rows = _measure(args, candidates, whole, folder)
        plot(rows, folder / FIGURE, _title(args, teacher.name))
    if candidates.left_out:
        print(f"left out, its filters are the embedding: {', '.join(candidates.left_out)}")
    if not args.lists_only:
        _print_rows(rows, candidates.scanned, args.metric)
    if budgets:
        by_layer = {}
        if "sensitivity" in args.allocation:
            by_layer = curves(rows, candidates.layers, candidates.left_out)
        found = _allocate(args, budgets, candidates, by_layer)
        loss = "accuracy" if any(row.accuracy is not None for row in rows) else "relative_mse"
        write_json(folder / LISTS, {**_identity(args, candidates), "loss": loss, "lists": found})
        _print_lists(found)
    print(folder)


def _whole(candidates: Candidates) -> dict[str, list[tuple[float, float]]]:
    return {layer: [(0.0, 0.0)] for layer in candidates.left_out}


def _measure(
    args: argparse.Namespace, candidates: Candidates, whole: keras.Model | None, folder: Path
) -> list[Row]:
    """The finished table of sensitivities; with what was there before, if it is of the same.

    `whole` is the audio-visual network whose audio half is pruned, if correspondence is measured.
    """
    from l3prune.networks import l3
    from l3prune.scan import Spread, scan
    from l3prune.training import environment
    from l3prune.weights import fingerprint
    from l3prune.windows import open_windows

    cache = Path(args.cache_dir or folder / "cache")
    with new_folder(folder), new_folder(cache):
        rate = l3.front_end(candidates.network).sample_rate
        source = open_windows(
            args.validation_data, rate, cache, hop_size=args.hop_size, quiet=args.quiet
        )
        windows = Spread(source, args.max_windows)
        identity = _identity(args, candidates, windows)
        if whole is not None:
            identity["whole_network"] = fingerprint(whole)
        if (folder / TABLE).exists():
            _check_record(folder, identity)
        variance = _variance(args, candidates, windows, cache)
        tested = None if whole is None else _correspondence(args, whole, rate)
    with locked(folder):
        write_json(
            folder / RECORD,
            {
                **identity,
                "weights": Path(args.weights).name,
                "windows": len(windows),
                "of_windows": len(source),
                "embedding_variance": variance,
                "left_out": candidates.left_out,
                "versions": environment(),
            },
        )
        judge = _judge(args, candidates, windows, cache, folder, variance, tested)
        return scan(candidates, args.amounts, judge, folder / TABLE, quiet=args.quiet)


def _identity(
    args: argparse.Namespace, candidates: Candidates, windows: Spread | None = None
) -> dict[str, Any]:
    """What must be the same for rows to belong to one table."""
    from l3prune.weights import fingerprint

    identity: dict[str, Any] = {
        "network": fingerprint(candidates.network),
        "mode": args.mode,
        "criterion": candidates.criterion,
    }
    if windows is not None:
        identity |= {"data": windows.fingerprint, "metric": args.metric}
        if args.metric == "accuracy":
            from l3prune.datasets import load_dataset

            clips = load_dataset(args.dataset, args.data_dir).clips
            names = json.dumps([[clip.path.name, clip.fold, clip.target] for clip in clips])
            identity["dataset"] = (
                f"{args.dataset} {hashlib.sha256(names.encode()).hexdigest()[:16]}"
            )
            identity["classifier_args"] = args.classifier_args
            identity["hop_size"] = args.hop_size
    return identity


def _check_record(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a table that was measured on something else."""
    path = folder / RECORD
    if (folder / TABLE).exists() and not path.exists():
        raise L3PruneError(
            f"{folder / TABLE} has no {RECORD} beside it that tells what it is of; delete it, or "
            "give another OUTPUT_DIR"
        )
    record = read_json(path)
    if not isinstance(record, dict):
        raise L3PruneError(f"{path} does not tell what {TABLE} is of; delete both")
    for name, value in identity.items():
        if record.get(name) != value:
            raise ParameterError(
                f"{folder / TABLE} is of another {name.replace('_', ' ')}: {record.get(name)!r} "
                f"there, {value!r} now; give another OUTPUT_DIR, or what it was made with"
            )


def _variance(
    args: argparse.Namespace, candidates: Candidates, windows: Spread, cache: Path
) -> float:
    """Mean over the embedding's values of their variance over the windows."""
    from l3prune.networks import inference
    from l3prune.weights import fingerprint
    from l3prune.windows import cached_targets

    teacher = candidates.network
    targets = cached_targets(
        windows,
        inference(teacher),
        fingerprint(teacher),
        teacher.output_shape[1],
        cache,
        batch_size=args.batch_size,
        quiet=args.quiet,
    )
    variance = float(targets.var(axis=0, dtype="float64").mean())
    if not 0 < variance < float("inf"):
        raise L3PruneError(
            f"the network's embedding is the same in all {len(windows)} windows of "
            f"{args.validation_data} (variance {variance:g}); give more, or other, recordings"
        )
    return variance


def _judge(
    args: argparse.Namespace,
    candidates: Candidates,
    windows: Spread,
    cache: Path,
    folder: Path,
    variance: float,
    tested: Callable[[keras.Model], float] | None,
) -> Callable[[Any], dict[str, float]]:
    from l3prune.evaluation import embedding_mse

    def judge(network: Any) -> dict[str, float]:
        mse = embedding_mse(
            network, candidates.network, windows, cache, batch_size=args.batch_size, quiet=True
        )
        figures = {"mse": mse, "relative_mse": mse / variance}
        if args.metric == "accuracy":
            figures["accuracy"] = _accuracy(args, network, folder / "candidate")
        if tested is not None:
            figures["accuracy"] = tested(network)
        return figures

    return judge


def _correspondence(
    args: argparse.Namespace, whole: keras.Model, rate: int
) -> Callable[[keras.Model], float]:
    """The accuracy on audio-visual correspondence with another audio half, its image half and its
    fusion as they are."""
    from l3prune import avc
    from l3prune.correspondence import correspondence
    from l3prune.datasets.avc import open_pairs

    pairs = open_pairs(args.validation_data, rate)
    vision = avc.vision_half(whole)
    batches = -(-(args.max_windows or len(pairs)) // args.batch_size)

    def tested(audio: keras.Model) -> float:
        joined = avc.join(audio, vision, whole)
        figures = correspondence(
            joined, pairs, batch_size=args.batch_size, epoch_size=batches, quiet=True
        )
        return figures["avc_accuracy"]

    return tested


def _accuracy(args: argparse.Namespace, network: Any, folder: Path) -> float:
    """Mean clip accuracy of the classifier on a network's embeddings.

    The classifier knows l3prune and not the reverse, so it runs as a command of its own.
    """
    from l3prune.weights import save_network

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    try:
        save_network(network, folder / "network.h5")
        features, results = folder / "features", folder / "results"
        common = ("--quiet", "--model", folder / "network.h5", "--hop-size", args.hop_size)
        _classifier("features", args.dataset, args.data_dir, features, *common)
        _classifier("cv", features, results, "--quiet", *args.classifier_args)
        for row in read_json(results / "cv.json")["summary"]:
            if row["metric"] == "clip accuracy":
                return float(row["mean"])
        raise L3PruneError(f"{results / 'cv.json'} has no clip accuracy")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _classifier(*words: object) -> None:
    spec = importlib.util.find_spec("classifier")
    assert spec is not None  # checked with the arguments
    assert spec.origin is not None
    # Where this process found it, so that the other does.
    path = [str(Path(spec.origin).parent.parent), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, "-m", "classifier", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    if ended.returncode:
        last = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]
        raise L3PruneError(f"python -m classifier {words[0]}: {last.removeprefix('error: ')}")


def _allocate(
    args: argparse.Namespace,
    budgets: Sequence[Budget],
    candidates: Candidates,
    by_layer: Mapping[str, Sequence[tuple[float, float]]],
) -> list[dict[str, Any]]:
    from l3prune.scan import allocate

    return [
        allocate(candidates, budget, allocation, by_layer)
        for budget in budgets
        for allocation in args.allocation
    ]


def _title(args: argparse.Namespace, name: str) -> str:
    what = "weights set to zero" if args.mode == "layerwise" else "filters removed"
    return f"{name}, one layer pruned at a time, {what}"


def _print_rows(rows: Sequence[Row], layers: Sequence[str], metric: str) -> None:
    """The table: a line a layer, a column an amount."""
    amounts = sorted({row.amount_percent for row in rows if row.layer != UNPRUNED})
    shown = ["relative_mse"] + ["accuracy"] * (metric != "mse")
    width = max(len("unpruned"), *map(len, layers)) + 1
    for column in shown:
        title = "squared error / variance"
        if column == "accuracy":
            title = f"{'correspondence' if metric == 'avc' else 'clip accuracy'}, %"
        print(f"{title}, percent pruned of one layer:")
        print(" " * width + "".join(f"{percent:9.4g}" for percent in amounts))
        values = {(row.layer, row.amount_percent): getattr(row, column) for row in rows}
        for layer in layers:
            cells = [values.get((layer, percent)) for percent in amounts]
            if column == "accuracy":
                texts = ["–" if cell is None else f"{100 * cell:.1f}" for cell in cells]
            else:
                texts = ["–" if cell is None else f"{cell:.3g}" for cell in cells]
            print(f"{layer:{width}}" + "".join(f"{text:>9}" for text in texts))
        if column == "accuracy":
            print(f"{UNPRUNED:{width}}{100 * values[UNPRUNED, 0.0]:9.1f}")


def _print_lists(found: Sequence[Mapping[str, Any]]) -> None:
    for each in found:
        figures = each["predicted"]
        texts = [f"sparsity {100 * figures['sparsity']:.3f} %"]
        if "filters" in figures:
            texts.append(f"filters removed {100 * figures['filters']:.2f} %")
        texts += [f"MACs {figures['macs']:,.0f}", f"bytes {figures['bytes']:,.0f}"]
        note = f"; {each['note']}, the nearest that was found" if each["note"] else ""
        print(f"{each['budget']} by {each['allocation']}: {', '.join(texts)}{note}")
        print(f"  {each['options']}")


if __name__ == "__main__":
    sys.exit(main())
