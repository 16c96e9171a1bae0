"""How long one window takes in which engine: dense ones, and l3prune's by sparsity.

    pip install -r benchmarks/requirements.txt
    python benchmarks/engines.py [--network NAME | FILE.h5] [--results FOLDER]

Each engine has a process of its own. In every round each process runs each of its models for a
moment, so that a change of the machine's speed meets all alike; quote the ratios. What is timed is
the network behind its front end, from log-mel spectrograms in memory to embeddings in memory.

Without a file, weights are random (He), pruned by magnitude to the sparsities of EdgeL3's Table II,
and BatchNorm has random statistics near those of its inputs. A file's network is pruned likewise,
or timed as it is if it has zeros. Engines that are not installed are reported as missing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import exports  # beside this
import numpy as np
from engine_process import (  # beside this
    ENGINES,
    OURS,
    Engine,
    EngineProcess,
    Missing,
    cpu_facts,
)
from engine_report import write_report  # beside this

from l3prune.allocation import EDGEL3_LISTS
from l3prune.errors import ParameterError, command
from l3prune.files import is_file, new_folder, write_json
from l3prune.quiet import load_tensorflow

LISTS = list(EDGEL3_LISTS.values())

#: The list of the published EdgeL3, which dense engines run too.
PUBLISHED = list(EDGEL3_LISTS).index(95.45)

#: Fractions of filters that are removed.
RATIOS = (0.25, 0.5, 0.75)

#: Windows that int8 ranges come from.
WINDOWS = 8

#: Largest relative error of an engine that computes the same thing.
ALLOWED = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.2}

#: Seconds between two bursts: threads of the last engine wait busily for a while.
PAUSE = 0.06

#: CPU flags that decide which kernels there are.
FLAGS = r"avx|avx2|fma|f16c|avx512(f|bw|vl|_vnni|_bf16|_fp16)|avx_vnni|amx_\w+|asimd\w*|sve2?|bf16"


@dataclass(frozen=True)
class Model:
    """A network in all engines' files.

    Attributes
    ----------
    name : str
    kind : str
        "main", the one that all engines run; "list", of other sparsities; "unpruned"; "filterwise".
    network : keras.Model
        Takes log-mel spectrograms.
    amount : float
        Fraction of kernel weights that are zero, or of filters that were removed.
    """

    name: str
    kind: str
    network: Any
    amount: float


class Files:
    """The models' files, each made when it is asked for."""

    def __init__(self, folder: Path, ranges: np.ndarray) -> None:
        self.folder, self._ranges = folder, ranges

    def path(self, model: Model, engine: Engine, batch: int) -> Path:
        """Where the engine finds the model. ImportError if a package to write it is missing."""
        from l3prune import litert
        from l3prune.onnx_file import write_onnx
        from l3prune.sparse import program_of
        from l3prune.sparse.packed import save_program
        from l3prune.weights import save_network

        ending = engine.file.format(batch=batch)
        path = self.folder / (model.name + ending)
        if path.exists():
            return path
        network = model.network
        if ending == ".h5":
            save_network(network, path)
        elif ending.endswith(".tflite"):
            values, ranges = ("int8", self._ranges) if "int8" in ending else ("float32", None)
            path.write_bytes(litert.convert(network, values, windows=ranges, batch=batch))
        elif ending == ".int8.onnx":
            exports.quantise_onnx(self.path(model, _FLOAT_ONNX, batch), self._ranges, path)
        else:
            writers: dict[str, Callable[[Any, Path], Any]] = {
                ".onnx": write_onnx,
                ".param": exports.write_ncnn,
                ".l3p": save_program,
            }
            writers[ending](program_of(network), path)
        return path


_FLOAT_ONNX = ENGINES["ONNX Runtime fp32"]


def random_network(name: str, seed: int = 0) -> Any:
    """A network for log-mel spectrograms with random weights; BatchNorm still does nothing."""
    from l3prune import graph
    from l3prune.networks import create_network

    network = create_network(name, input="log_mel")
    rng = np.random.default_rng(seed)
    for layer in graph.convolutions(network).values():
        shape = layer.kernel.shape
        deviation = np.sqrt(2 / np.prod(shape[:3]))
        biases = rng.normal(0, 0.1, shape[3])
        layer.set_weights([rng.normal(0, deviation, shape), biases])
    return network


def random_statistics(network: Any, windows: np.ndarray, seed: int = 1) -> None:
    """Give BatchNorm random scales, offsets, means and variances.

    Means and variances are near those of `windows`, so that signals neither vanish nor explode
    however many weights were pruned.
    """
    norms = [layer for layer in network.layers if type(layer).__name__ == "BatchNormalization"]
    rng = np.random.default_rng(seed)
    for layer in norms:
        layer.momentum = 0.0  # one batch, and the moving statistics are the batch's
    network(windows, training=True)
    for layer in norms:
        *_, mean, variance = layer.get_weights()
        size = len(mean)
        values = {
            "gamma": rng.uniform(0.5, 1.5, size),
            "beta": rng.normal(0, 0.2, size),
            "moving_mean": mean + rng.normal(0, 0.1, size) * np.sqrt(variance),
            "moving_variance": variance * rng.uniform(0.8, 1.25, size),
        }
        layer.set_weights([values[re.split("[/:]", each.name)[-2]] for each in layer.weights])


def log_mels(network: Any, count: int, seed: int) -> np.ndarray:
    """Log-mel spectrograms of noise with a slope over frequency and a course over time."""
    from l3prune.audio import log_spectrogram
    from l3prune.networks.l3 import front_end

    end = front_end(network)
    rng = np.random.default_rng(seed)
    rate = end.sample_rate
    slopes = np.arange(1, rate // 2 + 2) ** -rng.uniform(0, 1.5, (count, 1))
    waves = np.fft.irfft(slopes * np.fft.rfft(rng.normal(0, 1, (count, rate))), rate)
    places = np.linspace(0, 9, rate)
    for wave in waves:
        wave *= 10 ** np.interp(places, np.arange(10), rng.uniform(-2, 0, 10))
    return log_spectrogram(waves / np.abs(waves).max(axis=1, keepdims=True), end)


def make_models(given: str) -> list[Model]:
    """The networks that are timed."""
    from l3prune import graph, surgery
    from l3prune.filterwise import plan_filterwise
    from l3prune.networks.l3 import SPECS
    from l3prune.plan import plan_layerwise, score
    from l3prune.weights import load_network

    if is_file(given):
        base = surgery.strip_masks(load_network(given, input="log_mel"))
    elif given in SPECS:
        base = random_network(given)
    else:
        raise ParameterError(
            f"--network {given}: no such file, and no audio network of this name; known: "
            f"{', '.join(SPECS)}"
        )
    windows = log_mels(base, 4, seed=2)
    random = not is_file(given)

    def model(name: str, kind: str, network: Any, amount: float | None = None) -> Model:
        if random:
            random_statistics(network, windows)
        total, nonzero = graph.count_kernel_weights(network)
        return Model(name, kind, network, 1 - nonzero / total if amount is None else amount)

    weights = graph.conv_weights(base)
    total, nonzero = graph.count_kernel_weights(base)
    if nonzero < 0.99 * total:
        models = [model("given", "main", base)]
    elif len(weights) != len(LISTS[0]):
        raise ParameterError(
            f"--network {given} has {len(weights)} convolutions and no zeros; sparsities are known "
            f"for {len(LISTS[0])}: prune it first, then it is timed as it is"
        )
    else:
        models = []
        for number, percents in enumerate(LISTS):
            plan = plan_layerwise(weights, [percent / 100 for percent in percents])
            pruned = surgery.strip_masks(surgery.apply_masks(base, plan))
            kind = "main" if number == PUBLISHED else "list"
            models.append(model(f"list_{number + 1}", kind, pruned))
        models.append(model("unpruned", "unpruned", base))
    scores = score(weights, "l1")
    for ratio in RATIOS:
        smaller = surgery.remove_filters(base, plan_filterwise(scores, ratio=ratio))
        models.append(model(f"filterwise_{ratio:g}", "filterwise", smaller, ratio))
    return models


@contextlib.contextmanager
def start_processes(threads: int, folder: Path) -> Iterator[dict[str, EngineProcess]]:
    """A process for each engine, which ends with the block."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for number, engine in enumerate(ENGINES.values()):
            process = EngineProcess(engine, threads, folder / f"log_{number}.txt")
            stack.callback(process.close)
            processes[engine.name] = process
        yield processes


def entries(
    models: Sequence[Model], what: str, *, batch: int, unpruned: bool
) -> list[tuple[Engine, Model]]:
    """What runs in turns in one part."""
    chosen = []
    for engine in ENGINES.values():
        kinds = {"main"}
        if what == "filterwise":
            kinds = {"filterwise"} if engine.dense and not engine.environment else set()
        elif engine.dense and unpruned and not engine.environment:
            kinds = {"main", "unpruned"}
        elif engine.name == OURS and batch == 1:
            kinds = {"main", "list"}
        chosen += [(engine, model) for model in models if model.kind in kinds]
    return chosen


def measure(
    chosen: Sequence[tuple[Engine, Model]],
    processes: dict[str, EngineProcess],
    files: Files,
    windows: np.ndarray,
    *,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Time models in turns; gives rows of figures, and reasons of engines that have none."""
    from l3prune.networks import inference
    from l3prune.sparse import program_of

    load = os.getloadavg()[0]
    inputs = files.folder / "inputs.npy"
    np.save(inputs, windows)
    wanted: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}

    def attempt(engine: str, action: Callable[[], None]) -> None:
        if engine in reasons:
            return
        try:
            action()
        except (Missing, ImportError) as error:
            reasons[engine] = f"missing: {error}"
        except Exception as error:  # of whatever kind a converter raises
            reasons[engine] = f"failed: {' '.join(str(error).split())[:200]}"

    def prepare(engine: Engine, model: Model) -> None:
        process = processes[engine.name]
        path = files.path(model, engine, len(windows))
        process.load(model.name, path, len(windows))
        made = process.compute(model.name, inputs, files.folder / "outputs.npy")
        if model.name not in wanted:
            wanted[model.name] = inference(model.network)(windows)
        error = relative_error(made, wanted[model.name])
        first, _ = process.run(model.name, 2)
        dense, nonzero = exports.macs(program_of(model.network))
        row = {
            "engine": engine.name,
            "precision": engine.precision,
            "dense": engine.dense,
            "model": model.name,
            "kind": model.kind,
            "amount": model.amount,
            "macs": dense,
            "nonzero_macs": nonzero,
            "bytes": (path.with_suffix(".bin") if path.suffix == ".param" else path).stat().st_size,
            "relative_error": error,
            "right": error <= ALLOWED[engine.precision],
            "calls": max(1, round(1000 * seconds / first[-1])),
            "ms": [],
            "cores": [],
        }
        rows.append(row)

    def burst(row: dict[str, Any]) -> None:
        # Caches hold other engines' weights; a call that fills a burst does not feel it.
        extra = int(row["calls"] > 1)
        time.sleep(PAUSE)
        process = processes[row["engine"]]
        milliseconds, cores = process.run(row["model"], row["calls"] + extra)
        row["ms"] += [each / len(windows) for each in milliseconds[extra:]]
        row["cores"].append(cores)

    for engine, model in chosen:
        attempt(engine.name, functools.partial(prepare, engine, model))
    for number in range(rounds):
        # To and fro, so that none is always behind the same other.
        for row in rows[:: -1 if number % 2 else 1]:
            attempt(row["engine"], functools.partial(burst, row))
    for process in processes.values():
        process.forget()
    finished = [row for row in rows if row["engine"] not in reasons]
    for row in finished:
        milliseconds = np.array(row.pop("ms"))
        row["calls"] = len(milliseconds)
        row["ms_min"] = float(milliseconds.min())
        row["ms_median"] = float(np.median(milliseconds))
        row["cores"] = float(np.median(row["cores"]))
    return {"load_average": load, "rows": finished, "without_figures": reasons}


def relative_error(given: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value; a wrong shape or NaN counts as 1e9."""
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return 1e9
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    facts = cpu_facts()
    cpu = facts.get("model name", platform.processor() or platform.machine())
    if "model" in facts:
        cpu += f", family {facts.get('cpu family')} model {facts['model']}"
    flags = facts.get("flags", facts.get("Features", ""))
    versions = {}
    for package in sorted({engine.package for engine in ENGINES.values()} | {"onnx", "numpy"}):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "cpu": cpu,
        "flags": [flag for flag in flags.split() if re.fullmatch(FLAGS, flag)],
        "cpus": _cpus(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2")
    return [int(word) for word in words]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0 and up to 60")
    return value


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--network",
        default="mel256",
        help="name, or weight file (%(default)s)",
    )
    parser.add_argument(
        "--results",
        default="docs/results/engines",
        help="folder for the table, figures and plots (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=10, help="(%(default)s)")
    parser.add_argument(
        "--seconds-per-burst", type=_seconds, default=0.4, help="about (%(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=_counts,
        default="2,1" if _cpus() > 1 else "1",
        metavar="2,1",
        help="(%(default)s)",
    )
    parser.add_argument(
        "--batches", type=_counts, default="1,8", metavar="1,8", help="(%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise ParameterError(f"--rounds {args.rounds} is not a whole number from 1 on")
    if max(args.threads) > _cpus():
        raise ParameterError(
            f"--threads {max(args.threads)}: this process may use {_cpus()} CPUs; give at most so "
            "many threads"
        )
    load_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    start = time.perf_counter()
    results = Path(args.results)
    with new_folder(results):
        models = make_models(args.network)
    windows = log_mels(models[0].network, max(args.batches), seed=3)
    names = ("network", "rounds", "seconds_per_burst", "threads", "batches")
    figures: dict[str, Any] = {
        "settings": {name: getattr(args, name) for name in names},
        "environment": machine(),
        "lists": {f"list_{number + 1}": percents for number, percents in enumerate(LISTS)},
        "parts": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder), log_mels(models[0].network, WINDOWS, seed=4))
        for threads in args.threads:
            with start_processes(threads, files.folder) as processes:
                for batch in args.batches:
                    first = (threads, batch) == (args.threads[0], args.batches[0])
                    for what in ("sparsities", "filterwise")[: 1 + first]:
                        print(f"{what}, threads {threads}, batch {batch} …", file=sys.stderr)
                        part = measure(
                            entries(models, what, batch=batch, unpruned=first),
                            processes,
                            files,
                            windows[:batch],
                            rounds=args.rounds,
                            seconds=args.seconds_per_burst,
                        )
                        head = {"what": what, "threads": threads, "batch": batch}
                        figures["parts"].append(head | part)
                        figures["minutes"] = (time.perf_counter() - start) / 60
                        write_json(results / "engines.json", figures)
                        write_report(figures, results)
    print((results / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
