"""The whole loop on generated sound: prune, retrain, embed, classify, report.

    python experiments/demo.py OUTPUT_DIR

It prints and runs l3prune's own commands, as a user would type them, on the small network in
models/ and on synthetic sound events. Repeated with the same folder, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import classifier.__main__
import l3prune.datasets.synthetic
import l3prune.pruning
from l3prune.errors import command
from l3prune.files import atomic_write, make_folder, read_json

TEACHER = Path(__file__).parent.parent / "models" / "l3_synthetic.h5"


def call(main: Callable[[Sequence[str]], int], name: str, *words: object) -> None:
    """Print a command line and run it; end the demo if it fails."""
    argv = [str(word) for word in words]
    print(f"\n$ python -m {name} {shlex.join(argv)}", flush=True)
    code = main(argv)
    if code:
        sys.exit(code)


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output_dir", help="receives everything, the report at last")
    parser.add_argument("--sparsity", default="95.45", help="overall, percent (%(default)s)")
    parser.add_argument("--clips", default="8", help="per class and fold (%(default)s)")
    parser.add_argument("--epochs", default="12", help="of the distillation (%(default)s)")
    args = parser.parse_args(argv)
    start = time.monotonic()
    out = make_folder(args.output_dir)

    # Three corpora from three seeds: one to be judged on, two without labels to distil on. The
    # teacher's own training corpus has a fourth.
    for folder, seed in (("corpus", 1), ("sound_train", 2), ("sound_valid", 3)):
        call(
            l3prune.datasets.synthetic.main,
            "l3prune.datasets.synthetic",
            out / folder,
            *("--folds", 1 if folder == "sound_valid" else 5),
            *("--clips", args.clips),
            *("--seed", seed),
            "--quiet",
        )

    run = out / "embedding" / "pruning_kd" / "sound" / "sea64" / "demo"
    if not (run / "report.json").is_file():
        started = (run / "model_latest.h5").is_file()
        if not started:
            shutil.rmtree(run, ignore_errors=True)  # cut before its first epoch had ended
        call(
            l3prune.pruning.main,
            "l3prune.pruning",
            *(TEACHER, out / "sound_train", out / "sound_valid", out),
            *("--global-sparsity", args.sparsity),
            "--retrain",
            *("--num-epochs", args.epochs),
            *("--learning-rate", 1e-3),
            *("--train-batch-size", 16),
            *("--schedule", "cosine"),
            *("--batch-norm", "freeze"),
            *(("--continue-model-dir", run) if started else ("--run-name", "demo")),
        )

    report = {name: dict(row) for name, row in read_json(run / "report.json").items()}
    models = {
        "unpruned": TEACHER,
        "pruned": run / "model_pruned.h5",
        "retrained": run / "model_best_valid_loss.h5",
    }
    for state, model in models.items():
        call(
            classifier.__main__.main,
            "classifier",
            *("features", "us8k", out / "corpus", out / "features" / state),
            *("--model", model),
            *("--hop-size", 0.5),
        )
        call(
            classifier.__main__.main,
            "classifier",
            *("cv", out / "features" / state, out / "classifier" / state),
            "--quiet",
        )
        summary = read_json(out / "classifier" / state / "cv.json")["summary"]
        accuracy = next(row for row in summary if row["metric"] == "clip accuracy")
        report[state] |= {"accuracy": accuracy["mean"], "accuracy_std": accuracy["std"]}

    from l3prune.evaluation import Report

    table = Report(report)
    table.to_json(out / "report.json")
    draw(report, out / "report.png")
    with atomic_write(out / "report.txt") as temporary:
        temporary.write_text(f"{table}\n", encoding="utf-8")
    print(f"\n{table}\n")
    print("accuracy: 10 classes, clips of the test fold, mean and std over 5 folds")
    print(f"{out / 'report.json'}, report.txt, report.png; {time.monotonic() - start:.0f} s")


def draw(report: dict[str, dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 4)
    colours = ["tab:gray", "tab:red", "tab:blue"]
    for axes, column, scale, title in zip(
        panels,
        ("accuracy", "validation_mse", "nonzero", "bytes"),
        (100, 1, 1e-3, 1e-3),
        (
            "clip accuracy, %",
            "squared error of the embedding",
            "non-zero weights, thousands",
            "checkpoint, kB",
        ),
        strict=True,
    ):
        values = [scale * row[column] for row in report.values()]
        bars = axes.bar(list(report), values, color=colours)
        axes.bar_label(
            bars, [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        )
        axes.margins(y=0.15)
        axes.set_title(title, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
