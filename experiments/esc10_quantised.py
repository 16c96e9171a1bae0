"""float16, int8 and clustered networks, dense and sparse, judged on ESC-10.

    python experiments/esc10_quantised.py --data DIR --model FILE --work DIR --results DIR

For each test fold the network is pruned to --sparsity by one magnitude threshold and distilled on
the training folds, as in esc10_sparse.py, whose work folder may be given too. From the network
itself (dense) and from the pruned one (sparse) come six rows each: float32; float16; int8 without
training, its ranges from training windows; int8 by quantisation-aware distillation; clustered; and
both.
Distillation is for the teacher's embedding, its best epoch chosen on the validation fold.

Reported are the clip accuracy of an MLP trained on each row's own embeddings, chosen on the
validation fold too; the mean squared difference of the embedding from the network's and from the
row's float32 on the test fold; bytes of the LiteRT and the packed file, as they are and gzipped;
milliseconds for one window behind the front end, in turns; and peak memory of a process that loads
the file and computes ten windows. Embeddings of int8 rows are computed by their LiteRT files, all
others by TensorFlow. Kept zeros are checked in every file. For mel256, whose weights are random
here, bytes and milliseconds only.

Finished parts are found again in the work folder. The results folder receives results.json,
table.md and plot.png.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from study import Study, add_settings, new_parser, write_results  # beside this file

from l3prune.errors import L3PruneError, command
from l3prune.files import atomic_write, make_folder, write_json
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows, and the weights' type in their packed files.
ROWS = {
    "float32": "float32",
    "float16": "float16",
    "int8": "int8",
    "int8, aware": "int8",
    "clustered": "float32",
    "clustered, int8, aware": "int8",
}

#: Of the network with random weights: EdgeL3's.
MEL256_SPARSITY = 0.9545

#: Batches of training windows that give int8 its ranges.
_RANGE_BATCHES = 16

_PEAK = """
import sys
import numpy as np
path = sys.argv[1]
if path.endswith(".l3p"):
    import dataclasses
    from l3prune.sparse import SparseModel, load_program
    model = SparseModel(dataclasses.replace(load_program(path), front_end=None), threads=1)
    for _ in range(10):
        model(np.zeros((1, *model.input_shape), np.float32))
else:
    from ai_edge_litert.interpreter import Interpreter
    model = Interpreter(model_path=path, num_threads=1)
    model.allocate_tensors()
    for _ in range(10):
        model.invoke()
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--sparsity", type=float, default=95, help="percent (%(default)s)")
    add("--fine-epochs", type=int, default=3, help="of each scheme (%(default)s)")
    add("--fine-learning-rate", type=float, help="of each scheme (a tenth of --learning-rate)")
    add("--clusters", type=int, default=16, help="values of a layer (%(default)s)")
    add("--rounds", type=int, default=30, help="of the timing (%(default)s)")
    add("--mel256-filters", nargs=8, type=int, help="fewer filters, to try the script out")
    add_settings(parser)
    args = parser.parse_args(argv)
    if args.fine_learning_rate is None:
        args.fine_learning_rate = args.learning_rate / 10
    return args


class Row:
    """A network in one of the forms: what computes its embedding, and its files."""

    def __init__(self, network: Any, values: str, content: bytes):
        self.network = network
        self.values = values
        self.content = content

    def embed(self, maps: np.ndarray) -> np.ndarray:
        """Embeddings of log-mels, by the LiteRT file where it rounds activations."""
        from l3prune import litert, surgery
        from l3prune.networks import inference

        if self.values == "int8":
            return litert.run(self.content, maps)
        compute = inference(surgery.behind_front_end(surgery.strip_masks(self.network)))
        return np.concatenate([compute(part) for part in np.array_split(maps, 32) if len(part)])


def untrained_rows(network: Any, batches: Any) -> dict[str, Row]:
    """The rows that need no training."""
    from l3prune import litert
    from l3prune.quantization import quantize, to_float16, to_litert

    half, quantized = to_float16(network), quantize(network, batches)
    return {
        "float32": Row(network, "float32", litert.convert(network)),
        "float16": Row(half, "float16", litert.convert(half, "float16")),
        "int8": Row(quantized.network, "int8", to_litert(quantized)),
    }


def trained_rows(study: Study, network: Any, state: str, fold: int) -> dict[str, Row]:
    """The rows that are distilled; every finished one is found again."""
    from l3prune import litert
    from l3prune.checkpoints import LATEST
    from l3prune.datasets.splits import split_folds
    from l3prune.quantization import Quantized, to_litert
    from l3prune.quantized_training import distill_clustered, distill_quantized
    from l3prune.recipes import Recipe
    from l3prune.weights import load_network, save_network

    args = study.args
    valid_fold, train_folds = split_folds(study.dataset.folds, fold)
    name = f"{args.fine_epochs}-{args.fine_learning_rate:g}-{args.clusters}"
    place = study.work / "quantised" / name / state / f"fold{fold}"
    options: dict[str, Any] = {
        "recipe": Recipe(
            epochs=args.fine_epochs,
            learning_rate=args.fine_learning_rate,
            schedule="cosine",
            batch_norm="keep",
            checkpoint_interval=0,
        ),
        "batch_size": args.batch_size,
        "cache_dir": study.cache,
        "quiet": True,
    }
    sides = study.windows(train_folds), study.windows([valid_fold])

    def finished(scheme: str, train: Callable[[Path, bool], Any]) -> Path:
        folder = place / scheme
        path = folder / "finished.h5"
        if not path.is_file():
            start = time.monotonic()
            result = train(folder, (folder / LATEST).is_file())
            write_json(folder / "finished.json", {"seconds": time.monotonic() - start})
            if isinstance(result, Quantized):
                result.save(path)
            else:
                save_network(result, path)
            print(f"{state} fold {fold} {scheme}: {time.monotonic() - start:.0f} s", flush=True)
        return path

    def aware(student: Any, clustered: bool) -> Callable[[Path, bool], Any]:
        return lambda folder, resume: distill_quantized(
            student,
            study.teacher,
            *sides,
            folder,
            clustered=clustered,
            resume=resume,
            **options,
        )

    def cluster(folder: Path, resume: bool) -> Any:
        return distill_clustered(
            network,
            study.teacher,
            *sides,
            folder,
            clusters=args.clusters,
            resume=resume,
            **options,
        )

    quantized = Quantized.load(finished("aware", aware(network, False)))
    clustered = load_network(finished("clustered", cluster))
    both = Quantized.load(finished("both", aware(clustered, True)))
    return {
        "int8, aware": Row(quantized.network, "int8", to_litert(quantized)),
        "clustered": Row(clustered, "float32", litert.convert(clustered)),
        "clustered, int8, aware": Row(both.network, "int8", to_litert(both)),
    }


def log_mels(study: Study) -> list[np.ndarray]:
    """Log-mels of every clip's frames, cut as features are."""
    import tf_keras as keras

    from classifier.features import embed_file
    from l3prune.networks import attach_config, network_config

    maps = study.teacher.get_layer("log_mel").output
    network = keras.Model(study.teacher.inputs, keras.layers.Flatten()(maps))
    attach_config(network, network_config(study.teacher))
    clips = [embed_file(clip.path, network, study.args.hop_size) for clip in study.dataset.clips]
    return [clip.reshape(-1, *maps.shape[1:]) for clip in clips]


def judge(
    study: Study, row: Row, name: str, fold: int, maps: list[np.ndarray]
) -> tuple[list[float], np.ndarray]:
    """Accuracies by seed, and the embeddings of the test fold's frames."""
    from classifier.inputs import Features
    from classifier.train import train_fold

    dataset = study.dataset
    path = study.work / "embeddings" / f"{name}-fold{fold}.npz"
    checksum = hashlib.sha256(row.content).hexdigest()
    found = dict(np.load(path)) if path.is_file() else {"checksum": ""}
    if found["checksum"] != checksum:
        make_folder(path.parent)
        found = {"checksum": checksum, "embeddings": row.embed(np.concatenate(maps))}
        with atomic_write(path) as temporary:
            np.savez(temporary, **found)
    ends = np.cumsum([len(each) for each in maps])[:-1]
    embeddings = tuple(np.split(found["embeddings"], ends))
    folds = np.array([clip.fold for clip in dataset.clips])
    features = Features(
        dataset.name,
        dataset.labels,
        tuple(clip.path.stem for clip in dataset.clips),
        folds,
        np.array([clip.target for clip in dataset.clips]),
        embeddings,
    )
    place = study.work / "mlp" / name / checksum[:12]
    accuracy = [
        train_fold(features, fold, place, seed=seed, quiet=True).accuracy
        for seed in study.args.seeds
    ]
    test = [each for each, one in zip(embeddings, folds, strict=True) if one == fold]
    return accuracy, np.concatenate(test)


def files(row: Row, folder: Path) -> dict[str, Any]:
    """Bytes of a row's files, which stay in the folder, and what is zero in them."""
    from l3prune import litert
    from l3prune.quantization import count_zeros, integers
    from l3prune.sparse import SparseModel, load_program

    make_folder(folder)
    packed, converted = folder / "network.l3p", folder / "network.tflite"
    SparseModel.from_network(row.network).save(packed, row.values)
    with atomic_write(converted) as temporary:
        temporary.write_bytes(row.content)
    kernels = {
        step.name: step.kernel for step in load_program(packed).steps if hasattr(step, "kernel")
    }
    zeros = count_zeros(row.network, kernels)
    if row.values == "int8":
        for name, stored in zip(kernels, litert.kernels(row.content), strict=True):
            if not np.array_equal(np.moveaxis(stored.stored, 0, -1), integers(kernels[name])[0]):
                raise L3PruneError(f"{name}: the LiteRT and the packed file have other weights")
    contents = {"litert": row.content, "packed": packed.read_bytes()}
    return {
        **{f"{name}_bytes": len(content) for name, content in contents.items()},
        **{
            f"{name}_gzip_bytes": len(gzip.compress(content, mtime=0))
            for name, content in contents.items()
        },
        "pruned": sum(each.pruned for each in zeros.values()),
        "rounded_to_zero": sum(len(each.rounded) for each in zeros.values()),
        "weights": sum(kernel.size for kernel in kernels.values()),
    }


def times(folders: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds for one input of the files in some folders, in turns, and peak memory, MB."""
    import dataclasses

    from l3prune import litert
    from l3prune.sparse import SparseModel, load_program

    threads = len(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, folder in folders.items():
        program = dataclasses.replace(load_program(folder / "network.l3p"), front_end=None)
        given = rng.uniform(-60, 0, (1, *program.shape)).astype(np.float32)
        engine = litert.interpreter((folder / "network.tflite").read_bytes(), threads)
        engine.set_tensor(engine.get_input_details()[0]["index"], given)
        calls[name, "litert"] = engine.invoke
        calls[name, "packed"] = functools.partial(SparseModel(program), given)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):
        for key, call in list(calls.items())[:: -1 if number % 2 else 1]:
            time.sleep(0.02)  # threads of the one before wait busily for a while
            call()
            start = time.perf_counter()
            for _ in range(3):
                call()
            taken[key].append((time.perf_counter() - start) / 3 * 1000)
    found: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        found[name] = {}
        for form, ending in (("litert", "tflite"), ("packed", "l3p")):
            found[name][f"{form}_ms"] = float(np.median(taken[name, form][1:]))
            line = [sys.executable, "-c", _PEAK, str(folder / f"network.{ending}")]
            ended = subprocess.run(line, capture_output=True, text=True, check=True)
            found[name][f"{form}_peak_mb"] = int(ended.stdout.split()[-1]) / 1024
    return found


def mel256(args: argparse.Namespace, work: Path) -> dict[str, dict]:
    """Bytes and times of the network with random weights, whole and pruned, without training.

    Trained int8 files have the form of untrained ones.
    """
    import tf_keras as keras

    from l3prune import graph, litert, plan, surgery
    from l3prune.networks import create_network
    from l3prune.quantization import quantize, to_litert
    from l3prune.quantized_training import cluster

    keras.utils.set_random_seed(0)
    whole = create_network("mel256", filters=args.mel256_filters)
    masks = plan.plan_global(graph.conv_weights(whole), MEL256_SPARSITY)
    noise = [np.random.default_rng(0).uniform(-1, 1, (4, 1, 48000)).astype(np.float32)]
    found, folders = {}, {}
    for state, network in (("dense", whole), ("sparse", surgery.apply_masks(whole, masks))):
        rows = untrained_rows(network, noise)
        shared = cluster(network, args.clusters)
        rows["clustered"] = Row(shared, "float32", litert.convert(shared))
        both = quantize(shared, noise)
        rows["clustered, int8"] = Row(both.network, "int8", to_litert(both))
        for form, row in rows.items():
            name = f"{state} {form}"
            folders[name] = work / "files" / "mel256" / name.replace(", ", "-")
            found[name] = files(row, folders[name])
    for name, figures in times(folders, max(1, args.rounds // 6)).items():
        found[name].update(figures)
    return found


def summarise(rows: dict[str, list[dict]]) -> list[dict]:
    """One line a row, over folds and seeds."""
    table = []
    for name, parts in rows.items():
        numbers = [key for key in parts[0] if key not in ("fold", "accuracy")]
        means = {
            key: float(np.mean([part[key] for part in parts if key in part])) for key in numbers
        }
        accuracy = 100 * float(np.mean([part["accuracy"] for part in parts]))
        table.append({"row": name, "accuracy": accuracy, **means})
    return table


def checks(table: list[dict], random: dict[str, dict]) -> dict[str, Any]:
    """What was aimed at, and what came out."""
    accuracy = {line["row"]: line["accuracy"] for line in table}
    found: dict[str, Any] = {}
    for state in ("dense", "sparse"):
        points = accuracy[f"{state} int8, aware"] - accuracy[f"{state} float32"]
        found[f"{state}: int8, aware, within 1 point of float32"] = {
            "points": points,
            "met": points >= -1,
        }
    size = random["sparse int8"]["packed_bytes"]
    found["mel256, sparse int8: packed file of 0.45 MB at most"] = {
        "bytes": size,
        "met": size <= 450_000,
    }
    return found


def markdown(table: list[dict], random: dict[str, dict], aims: dict[str, Any]) -> str:
    head = (
        "| network | accuracy | MSE to the network | MSE to own float32 | LiteRT kB | gzipped | "
        "packed kB | gzipped | ms LiteRT | ms sparse | MB LiteRT | MB sparse | rounded to zero |"
    )
    lines = [head, "|---|" + "---:|" * 12]
    bare = [{"row": f"mel256, random weights, {name}", **each} for name, each in random.items()]
    for line in [*table, *bare]:
        told = ["–", "–", "–"]
        if "accuracy" in line:
            told = [
                f"{line['accuracy']:.2f} %",
                f"{line['mse_teacher']:.4g}",
                f"{line['mse_own']:.3g}",
            ]
        sizes = [
            f"{line[key] / 1000:.1f}"
            for key in ("litert_bytes", "litert_gzip_bytes", "packed_bytes", "packed_gzip_bytes")
        ]
        costs = [
            f"{line[key]:.3g}"
            for key in ("litert_ms", "packed_ms", "litert_peak_mb", "packed_peak_mb")
        ]
        zeros = f"{line['rounded_to_zero']:.0f}"
        lines.append("| " + " | ".join([line["row"], *told, *sizes, *costs, zeros]) + " |")
    lines.append("")
    for aim, found in aims.items():
        value = f"{found['points']:+.2f} points" if "points" in found else f"{found['bytes']} bytes"
        lines.append(f"- {aim}: {value}, {'met' if found['met'] else 'not met'}")
    return "\n".join(lines) + "\n"


def plot(table: list[dict]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = {"dense": "tab:blue", "sparse": "tab:orange"}
    markers = dict(zip(ROWS, "osDv^P", strict=True))
    for line in table:
        state, form = line["row"].split(" ", 1)
        smallest = min(line[key] for key in line if key.endswith("_bytes")) / 1000
        for axes, value in zip(panels, ("accuracy", "mse_own"), strict=True):
            axes.plot(
                smallest,
                line[value],
                markers[form],
                color=colours[state],
                markersize=8,
                alpha=0.8,
                label=f"{state} {form}",
            )
    for axes, label in zip(
        panels, ("clip accuracy, %", "embedding MSE to own float32"), strict=True
    ):
        axes.set(xscale="log", xlabel="smallest file, kB", ylabel=label)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.margins(0.1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    from l3prune import graph, plan, surgery
    from l3prune.datasets.splits import split_folds
    from l3prune.training import environment
    from l3prune.windows import batch_indices

    def prune(network, percent: str):
        masks = plan.plan_global(graph.conv_weights(network), float(percent) / 100)
        return surgery.apply_masks(network, masks)

    study = Study(args, prune)
    maps = log_mels(study)
    rows: dict[str, list[dict]] = {}
    folders: dict[str, Path] = {}
    for fold in study.folds:
        source = study.windows(split_folds(study.dataset.folds, fold)[1])
        chosen = batch_indices(source, args.batch_size, seed=0)
        batches = [source.read(next(chosen)) for _ in range(_RANGE_BATCHES)]
        teacher: np.ndarray | None = None
        for state in ("dense", "sparse"):
            network = study.teacher
            if state == "sparse":
                network, _ = study.distilled(f"{args.sparsity:g}", fold)
            forms = untrained_rows(network, batches)
            # The study's settings, of which its folder is named, are without the sparsity.
            place = state if state == "dense" else f"{state}-{args.sparsity:g}"
            forms |= trained_rows(study, network, place, fold)
            own: np.ndarray | None = None
            for form in ROWS:
                name, row = f"{state} {form}", forms[form]
                accuracy, embeddings = judge(study, row, name.replace(", ", "-"), fold, maps)
                own = embeddings if own is None else own
                teacher = embeddings if teacher is None else teacher
                folder = study.work / "files" / f"fold{fold}" / name.replace(", ", "-")
                if fold == study.folds[0]:
                    folders[name] = folder
                result = {
                    "fold": fold,
                    "accuracy": accuracy,
                    "mse_teacher": float(np.square(embeddings - teacher).mean()),
                    "mse_own": float(np.square(embeddings - own).mean()),
                    **files(row, folder),
                }
                rows.setdefault(name, []).append(result)
                print(f"fold {fold} {name}: accuracy {np.mean(accuracy):.4f}", flush=True)
    for name, figures in times(folders, args.rounds).items():
        rows[name][0].update(figures)
    random = mel256(args, study.work)
    table = summarise(rows)
    aims = checks(table, random)
    results = {
        "settings": {**vars(args), "folds": study.folds},
        "environment": environment(),
        "rows": rows,
        "summary": table,
        "mel256_random_weights": random,
        "aims": aims,
    }
    write_results(args.results, results, markdown(table, random, aims), lambda: plot(table))


if __name__ == "__main__":
    sys.exit(main())
