"""Does it matter how an overall sparsity is shared out among the layers? Judged on ESC-10.

    python experiments/esc10_allocations.py --data DIR --model FILE --work DIR --results DIR

A network is pruned to the same number of weights in four ways: the same amount everywhere
(uniform), Erdős-Rényi-Kernel (erk), by measured sensitivities of the layers (sensitivity), and by
one magnitude threshold for all layers (global). Uniform is meant plainly; EdgeL3's lists spare
the first layer.

Nothing is chosen on a test fold: sensitivities are measured, for each test fold anew, on the
recordings of its validation fold, which is the fold before it. The other folds train, for the
distillation and for the classifier alike. Reported, before and after distillation, are the clip
accuracy of the MLP on the embeddings and the squared error of the embedding on the test fold, and
their differences to uniform on the same fold, with the standard error over folds.

The defaults are for an hour or so on two cores: a distillation takes one to two minutes, and each
sparsity that is distilled takes one for each allocation and fold. Hence sparsities below 95 %,
where accuracy is near the unpruned network's without distillation (esc10_layerwise.py), are not
distilled, and there are 6 epochs instead of its 8.

Finished parts are found again in the work folder, so the command can be repeated after a stop. The
results folder receives results.json, table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from study import Study, add_settings, new_parser, write_results  # beside this file

from l3prune.budget import parse_budget
from l3prune.curves import curves, tidy
from l3prune.errors import ParameterError, command
from l3prune.plan import plan_global, plan_layerwise
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The first is what the others are compared with.
ALLOCATIONS = ("uniform", "erk", "sensitivity", "global")

STAGES = {"pruned": "pruned only", "distilled": "distilled"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--sparsities", nargs="+", type=float, default=[90, 95.45, 98], help="overall, percent")
    add(
        "--distill-from",
        type=float,
        default=95,
        metavar="PERCENT",
        help="from this sparsity on networks are distilled, too (%(default)s)",
    )
    add(
        "--amounts",
        nargs="+",
        type=float,
        default=[50, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5],
        help="of one layer, whose effect is measured; no list goes beyond the largest; percent",
    )
    add(
        "--max-windows",
        type=int,
        default=512,
        help="of the validation fold, to measure by; 0 for all (%(default)s)",
    )
    add_settings(parser, epochs=6)
    args = parser.parse_args(argv)
    for percent in args.sparsities:
        parse_budget(f"sparsity={percent:g}")
    args.sparsities, args.amounts = tidy(args.sparsities), tidy(args.amounts)
    if args.sparsities[-1] >= args.amounts[-1]:
        raise ParameterError(
            f"--sparsities {args.sparsities[-1]:g} is not below the largest of --amounts, "
            f"{args.amounts[-1]:g}, beyond which no list goes; give a larger one, such as 99.5"
        )
    if args.max_windows < 0:
        raise ParameterError(f"--max-windows {args.max_windows} is negative; 0 takes all")
    # A fold is the unit of the standard errors.
    args.folds = list(dict.fromkeys(args.folds or [])) or None
    return args


class Lists:
    """What to prune of each layer, for a state, "allocation percent", and a test fold."""

    def __init__(self, study: Study):
        from l3prune.scan import Candidates

        self.study = study
        self.candidates = Candidates(study.teacher)
        # What a layer cannot lose shows before anything is measured.
        self.candidates.counts(study.args.amounts)
        self._curves: dict[int, dict[str, list[tuple[float, float]]]] = {}

    def amounts(self, state: str, fold: int) -> dict[str, float]:
        """Percent of each layer, as `--layerwise --sparsity` of the pruning command takes them."""
        from l3prune.budget import meet
        from l3prune.scan import allocate

        allocation, percent = state.split()
        budget = parse_budget(f"sparsity={percent}")
        if allocation == "global":
            parts = meet(budget, self.candidates.costs, "layerwise", self._by_threshold)
            return {layer: 100 * part for layer, part in parts.items()}
        by_layer = self.sensitivities(fold) if allocation == "sensitivity" else None
        return allocate(self.candidates, budget, allocation, by_layer)["amounts"]

    def prune(self, network, state: str, fold: int):
        """The network with its masks."""
        from l3prune import surgery

        each = [percent / 100 for percent in self.amounts(state, fold).values()]
        plan = plan_layerwise(self.candidates.weights, each, self.candidates.criterion)
        left = sum(int(mask.sum()) for mask in plan.values())
        total = sum(mask.size for mask in plan.values())
        wanted = total * (1 - parse_budget(f"sparsity={state.split()[1]}").value)
        # Weights that score alike go together.
        if abs(left - wanted) > 1e-3 * wanted + 1:
            raise ParameterError(
                f"{state}: {left} of {total} weights stay instead of {wanted:.0f}, since many "
                "score alike; take a network that is not pruned yet"
            )
        return surgery.apply_masks(network, plan)

    def sensitivities(self, fold: int) -> dict[str, list[tuple[float, float]]]:
        """Curves of all layers, measured on the validation fold of a test fold."""
        from l3prune.datasets.splits import split_folds
        from l3prune.evaluation import embedding_mse
        from l3prune.networks import inference
        from l3prune.scan import Spread, scan
        from l3prune.weights import fingerprint
        from l3prune.windows import cached_targets

        study, teacher = self.study, self.study.teacher
        valid_fold, _ = split_folds(study.dataset.folds, fold)
        if valid_fold not in self._curves:
            start = time.monotonic()
            windows = Spread(study.windows([valid_fold]), study.args.max_windows)
            targets = cached_targets(
                windows,
                inference(teacher),
                fingerprint(teacher),
                teacher.output_shape[1],
                study.cache,
                quiet=True,
            )
            variance = float(targets.var(axis=0, dtype="float64").mean())

            def judge(network) -> dict[str, float]:
                mse = embedding_mse(network, teacher, windows, study.cache, quiet=True)
                return {"mse": mse, "relative_mse": mse / variance}

            path = study.work / "sensitivity" / f"fold{valid_fold}" / "sensitivity.csv"
            rows = scan(self.candidates, study.args.amounts, judge, path)
            self._curves[valid_fold] = curves(rows, self.candidates.layers)
            took = time.monotonic() - start
            print(f"sensitivities, fold {valid_fold}: {len(windows)} windows, {took:.0f} s")
        return self._curves[valid_fold]

    def _by_threshold(self, costs, level: float) -> dict[str, float]:
        """One magnitude threshold, as a rule by which `meet` meets a budget to the weight."""
        masks = plan_global(self.candidates.weights, level, self.candidates.criterion)
        return {layer: 1 - float(mask.mean()) for layer, mask in masks.items()}


def compare(values: Sequence[float], base: Sequence[float]) -> dict:
    """Differences by fold, their mean and its standard error; None of one fold."""
    differences = np.subtract(values, base)
    error = differences.std(ddof=1) / np.sqrt(differences.size) if differences.size > 1 else None
    return {"by_fold": differences, "mean": differences.mean(), "standard_error": error}


def summarise(rows: Mapping[str, list[dict]]) -> list[dict]:
    """One row a state: accuracy over folds and seeds, error over folds, differences to uniform."""
    table: list[dict] = []
    for name, parts in rows.items():
        stage, _, state = name.partition(" ")
        allocation, percent = state.split() if state else ("", "0")
        accuracies = 100 * np.array([part["accuracy"] for part in parts])
        by_fold = {
            "accuracy": accuracies.mean(axis=1),
            "mse": np.array([part["mse"] for part in parts]),
        }
        row = {
            "stage": stage,
            "allocation": allocation,
            "percent": float(percent),
            "sparsity": 100 * float(np.mean([part["sparsity"] for part in parts])),
            "std": float(accuracies.std(ddof=1)) if accuracies.size > 1 else 0.0,
            **{key: float(values.mean()) for key, values in by_fold.items()},
            "by_fold": by_fold,
        }
        base = find(table, stage, float(percent), ALLOCATIONS[0])
        if base:
            row["to_uniform"] = {
                key: compare(values, base["by_fold"][key]) for key, values in by_fold.items()
            }
        table.append(row)
    return table


def find(table: list[dict], stage: str, percent: float, allocation: str) -> dict | None:
    """The row of a state, if it is there."""
    wanted = (stage, percent, allocation)
    return next(
        (row for row in table if (row["stage"], row["percent"], row["allocation"]) == wanted), None
    )


def markdown(table: list[dict], lists: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Results, their differences to uniform, and the lists."""
    unpruned = table[0]
    columns = [
        f"{measure}, {title}" for measure in ("accuracy", "MSE") for title in STAGES.values()
    ]
    lines = [
        f"| overall sparsity | allocation | {' | '.join(columns)} |",
        "|---:|---|---:|---:|---:|---:|",
        f"| 0 (unpruned) | – | {unpruned['accuracy']:.1f} ± {unpruned['std']:.1f} | – | 0 | – |",
    ]
    differences = [lines[0], lines[1]]
    count = 0
    for pruned in table:
        if pruned["stage"] != "pruned":
            continue
        name = pruned["allocation"]
        states = [find(table, stage, pruned["percent"], name) for stage in STAGES]
        start = f"| {pruned['sparsity']:.2f} % | {name} | "
        cells = [f"{row['accuracy']:.1f} ± {row['std']:.1f}" if row else "–" for row in states]
        cells += [f"{row['mse']:.4g}" if row else "–" for row in states]
        lines.append(start + " | ".join(cells) + " |")
        if "to_uniform" in pruned:
            cells = [
                _difference(row["to_uniform"][key], *digits) if row else "–"
                for key, digits in (("accuracy", (".1f", ".1f")), ("mse", (".3g", ".2g")))
                for row in states
            ]
            count += 4 - cells.count("–")
            differences.append(start + " | ".join(cells) + " |")
    layers = list(next(iter(next(iter(lists.values())).values())))
    amounts = [
        f"| overall sparsity | allocation | {' | '.join(layers)} |",
        "|---:|---|" + "---:|" * len(layers),
    ]
    for state, by_fold in lists.items():
        allocation, percent = state.split()
        cells = []
        for layer in layers:
            values = [amounts_of[layer] for amounts_of in by_fold.values()]
            texts = dict.fromkeys(f"{value:.1f}" for value in (min(values), max(values)))
            cells.append("–".join(texts))
        amounts.append(f"| {percent} % | {allocation} | {' | '.join(cells)} |")
    folds = len(unpruned["by_fold"]["mse"])
    return "\n\n".join(
        [
            "Accuracy in percent: mean ± standard deviation over folds and seeds. MSE: squared "
            "error of the embedding, mean over folds.",
            "\n".join(lines),
            f"Differences to uniform: {_reading(folds, count)}",
            "\n".join(differences),
            "Lists, percent of each layer (of sensitivity, the least and the most of all folds):",
            "\n".join(amounts) + "\n",
        ]
    )


def _difference(found: Mapping, digits: str, error_digits: str) -> str:
    mean, error = found["mean"], found["standard_error"]
    return f"{mean:+{digits}}" + ("" if error is None else f" ± {error:{error_digits}}")


def _reading(folds: int, count: int) -> str:
    if folds < 2:
        return "of one fold, so without standard errors; nothing follows from them."
    from scipy.stats import t

    return (
        f"mean ± standard error of the {folds} differences by fold. An interval of 95 % reaches "
        f"{t.ppf(0.975, folds - 1):.2f} standard errors to both sides; of {count} such intervals "
        f"{0.05 * count:.1f} lie beside the truth on average. Folds share training recordings, so "
        "the standard errors are rather too small."
    )


def plot(table: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    panels[0, 0].sharey(panels[0, 1])
    ticks = sorted({row["percent"] for row in table[1:]})
    for axes, (stage, title) in zip(panels.T, STAGES.items(), strict=True):
        axes[0].axhline(table[0]["accuracy"], color="black", linestyle="--", label="unpruned")
        axes[0].set_title(title)
        for number, allocation in enumerate(ALLOCATIONS):
            rows = [
                row for row in table if (row["stage"], row["allocation"]) == (stage, allocation)
            ]
            # Sparsity by the share of weights that stay, on a logarithm; side by side, so that
            # dots of folds can be told apart.
            kept = [(100 - row["percent"]) * 1.03 ** (1.5 - number) for row in rows]
            for panel, key in zip(axes, ("accuracy", "mse"), strict=True):
                colour = f"C{number}"
                panel.plot(kept, [row[key] for row in rows], "o-", color=colour, label=allocation)
                for place, row in zip(kept, rows, strict=True):
                    dots = row["by_fold"][key]
                    panel.plot([place] * len(dots), dots, ".", color=colour, alpha=0.35)
    panels[0, 0].set(ylabel="clip accuracy, %")
    panels[1, 0].set(ylabel="squared error of the embedding, test fold")
    for panel in panels.flat:
        panel.set_xscale("log")
        panel.set_xticks([100 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0, 0].invert_xaxis()  # of all, they share it
    for panel in panels[1]:
        panel.set(xlabel="overall sparsity, %")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle("mean over folds and classifier seeds; small dots: folds", fontsize=10)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    states = [
        f"{allocation} {percent:g}" for percent in args.sparsities for allocation in ALLOCATIONS
    ]
    distilled = [state for state in states if float(state.split()[1]) >= args.distill_from]
    by_fold = [state for state in states if state.startswith("sensitivity ")]

    def prune(network, state: str, fold: int = 0):
        """Lists by sensitivity depend on the fold, others do not."""
        return lists.prune(network, state, fold)

    study = Study(args, prune, by_fold, [args.amounts, args.max_windows])
    lists = Lists(study)
    results = study.run(states, distilled)
    results["lists"] = {
        state: {fold: lists.amounts(state, fold) for fold in study.folds} for state in states
    }
    results["summary"] = table = summarise(results["rows"])
    write_results(args.results, results, markdown(table, results["lists"]), lambda: plot(table))


if __name__ == "__main__":
    sys.exit(main())
