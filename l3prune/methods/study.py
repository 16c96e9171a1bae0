"""Carries out what python -m l3prune.compare --config asks for: cell after cell, each kept."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from l3prune import surgery
from l3prune.datasets import Dataset, load_dataset
from l3prune.errors import Interrupted, L3PruneError, ParameterError
from l3prune.evaluation import measure
from l3prune.files import claim_folder, make_folder, new_folder, read_json, write_json
from l3prune.graph import count_kernel_weights
from l3prune.methods.results import write_results
from l3prune.methods.settings import UNPRUNED, Cell, cells, identity, parse
from l3prune.methods.tasks import LabelTask, Task, network_of, task_of
from l3prune.methods.ways import TRAININGS, check_cells, maker
from l3prune.retraining import recipe_of
from l3prune.timing import latency
from l3prune.training import environment
from l3prune.weights import fingerprint

#: In the work folder: what all cells in it have in common.
RECORD = "study.json"


def run(argv: Sequence[str]) -> int:
    """The command; see `python -m l3prune.compare --config FILE --help`.

    Examples
    --------
    >>> run(["--config", "/nowhere.json"])
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: cannot read /nowhere.json: No such file or directory
    """
    args = parse(argv)
    recipe_of(args)  # refuses numbers outside their ranges
    args.amounts = {way: _amounts(args, way) for way in args.trained}
    dataset = load_dataset(args.dataset, args.data_dir)
    network = network_of(args, dataset)
    folds = args.folds or list(dataset.folds)
    for fold in folds:
        if fold not in dataset.folds:
            known = ", ".join(map(str, dataset.folds))
            raise ParameterError(f"--folds {fold}: {dataset.name} here has folds {known}")
    task_of(args).check(args, network, dataset)
    table = cells(args, folds, control=task_of(args).control)
    check_cells(surgery.behind_front_end(network), table, args.num_epochs)
    settings = _settings(args, network, dataset)
    work = Path(args.work_dir or Path(args.output_dir) / "work")
    with new_folder(args.output_dir), new_folder(work):
        claim_folder(work / "cells", RECORD, settings)
        own = table if args.task is None else table[args.task - 1 :: args.tasks]
        _measure(args, own, work)
    missing = [cell for cell in table if not _path(work, cell).is_file()]
    if missing:
        print(f"{len(missing)} of {len(table)} measurements are still to come")
        return 0
    rows = [row for cell in table for row in read_json(_path(work, cell))["rows"]]
    budget = {"num_epochs": args.num_epochs, "train_epoch_size": args.train_epoch_size}
    told = {**settings, **budget, "folds": folds, "environment": environment()}
    print(write_results(Path(args.output_dir), rows, told))
    return 0


def _amounts(args: argparse.Namespace, way: str) -> list[float]:
    maker(way)  # refuses unknown ones
    name = TRAININGS[way].amounts
    if not getattr(args, name):
        raise ParameterError(f"--trained {way} needs --{name}")
    return getattr(args, name)


def _settings(args: argparse.Namespace, network: keras.Model, dataset: Dataset) -> dict[str, Any]:
    """What must be the same for measurements to belong to one table."""
    built = task_of(args) is LabelTask
    clips = [[clip.path.name, clip.fold, clip.target] for clip in dataset.clips]
    return {
        **identity(args),
        # Fresh weights are drawn anew in each fold.
        "network": args.network if built else f"{network.name} {fingerprint(network)}",
        "clips": hashlib.sha256(repr(clips).encode()).hexdigest()[:16],
    }


def _path(work: Path, cell: Cell) -> Path:
    return work / "cells" / f"{cell.name}.json"


def _measure(args: argparse.Namespace, table: Sequence[Cell], work: Path) -> None:
    """Measure the cells that are not there yet."""
    task: Task | None = None
    todo = [cell for cell in table if not _path(work, cell).is_file()]
    bar = tqdm(
        todo,
        "comparing",
        total=len(table),
        initial=len(table) - len(todo),
        unit="network",
        disable=args.quiet or None,
    )
    for cell in bar:
        bar.set_postfix_str(cell.name)
        try:
            if task is None or task.folds != cell.folds:
                keras.backend.clear_session()  # of what was trained for other folds
                task = task_of(args)(args, cell.folds, work)
            _measure_one(args, task, cell, work)
        except Interrupted as error:
            reason = str(error).split(";")[0]
            raise Interrupted(f"{cell.name} {reason}; the same command goes on") from error


def _measure_one(args: argparse.Namespace, task: Task, cell: Cell, work: Path) -> None:
    folder = make_folder(work / "training" / cell.name)
    made = maker(cell.way)(task, cell, args.num_epochs, folder / "made")
    stages = {"pruned": (task.figures(made.network, keep=True), measure(made.network))}
    milliseconds = _milliseconds(args, task.teacher, made.network, work)
    left = args.num_epochs - made.epochs
    if left and (cell.way != UNPRUNED or task.control):
        task.train(made.network, folder / "retrained", left, cell.seed)
        stages["retrained"] = (task.figures(made.network), measure(made.network))
    elif cell.way != UNPRUNED:
        stages["retrained"] = stages["pruned"]
    weights, nonzero = count_kernel_weights(made.network)
    parameters = surgery.strip_masks(made.network).count_params()
    costs = {
        "parameters": parameters,
        "nonzero_parameters": parameters - (weights - nonzero),
        **milliseconds,
    }
    rows = [
        {
            **{name: getattr(cell, name) for name in ("way", "criterion", "amount", "seed")},
            "stage": stage,
            "fold": int(fold),
            **found,
            **{name: sizes[name] for name in ("macs", "nonzero_macs", "bytes", "packed_bytes")},
            **costs,
            "epochs": 0 if stage == "pruned" else args.num_epochs,
            "epochs_before": made.epochs,
        }
        for stage, (figures, sizes) in stages.items()
        for fold, found in figures.items()
    ]
    for row in rows:
        if not np.isfinite(row["accuracy"]):
            raise L3PruneError(f"{cell.name}: the accuracy is not finite")
    write_json(_path(work, cell), {"rows": rows})
    shutil.rmtree(folder)


def _milliseconds(
    args: argparse.Namespace, teacher: keras.Model, network: keras.Model, work: Path
) -> dict[str, float]:
    """Medians of the time for one input, and of the unpruned network's measured in turns with it.

    Networks of the same shapes take the same time, so it is measured once.
    """
    shapes = [tuple(weight.shape) for weight in surgery.strip_masks(network).weights]
    key = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
    path = make_folder(work / "times") / f"{key}-{args.rounds}.json"
    if not path.is_file():
        times = latency({"unpruned": teacher, "pruned": network}, rounds=args.rounds)
        write_json(
            path,
            {
                "ms": float(np.median(times["pruned"])),
                "unpruned_ms": float(np.median(times["unpruned"])),
            },
        )
    return read_json(path)
