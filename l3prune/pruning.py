"""python -m l3prune.pruning: prune a network, retrain it, report."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from l3prune.errors import ParameterError, command
from l3prune.files import new_folder, read_json
from l3prune.options import CHOICES, LABELS, MASK_SETTINGS, chosen_of, parse, reduces
from l3prune.quiet import load_tensorflow
from l3prune.runs import (
    CONFIG,
    check_begun,
    check_file,
    subset_name,
    told,
    write_config,
)

if TYPE_CHECKING:
    import tf_keras as keras

    from l3prune.pruner import Wish
    from l3prune.retraining import Retraining
    from l3prune.schedules import MaskSchedule
    from l3prune.speed import Measured

#: The pruned network before retraining, in a run's folder.
PRUNED = "model_pruned.h5"


def _wish(args: argparse.Namespace, network: keras.Model) -> Wish | None:
    """How to prune a network; None if nothing of it goes."""
    from l3prune.channels import named_layers
    from l3prune.pruner import Wish, measured_curves

    if not chosen_of(args, CHOICES):
        return None
    each = args.filter_ratio if args.filterwise else args.sparsity
    named = None
    if args.layer_ratio is not None:
        named = {name: percent / 100 for name, percent in args.layer_ratio.items()}
    amount = None if each is None else [percent / 100 for percent in each]
    overall = args.global_filter_ratio if args.filterwise else args.global_sparsity
    fresh = tuple(args.fresh or ())
    if args.from_scratch:
        fresh = tuple(name for name, layer in named_layers(network) if layer.weights)
    measured = None
    if args.sensitivity is not None:
        mode = "filterwise" if args.filterwise else "layerwise"
        criterion = args.criterion or ("l1" if args.filterwise else "magnitude")
        measured = measured_curves(args.sensitivity, network, mode, criterion)
    return Wish(
        filterwise=args.filterwise,
        amount=amount[0] if amount is not None and len(amount) == 1 else amount,
        overall=None if overall is None else overall / 100,
        counts=args.num_filters,
        layers=named,
        fresh=fresh,
        zero=args.zero_filters,
        pattern=args.pattern,
        block=args.blocks,
        budget=args.budget,
        allocation=args.allocation,
        curves=measured,
        round_to=args.round_to,
        criterion=args.criterion,
    )


def _measured(
    args: argparse.Namespace, network: keras.Model, wish: Wish | None
) -> tuple[Wish | None, Measured | None]:
    """The wish with a budget of milliseconds as one of MACs, and how it was found.

    A run that is continued has the MACs of its beginning: measured anew they would differ.
    """
    from l3prune.budget import parse_budget
    from l3prune.speed import Measured, meet_milliseconds

    if wish is None or wish.budget is None or parse_budget(wish.budget).kind != "ms":
        return wish, None
    if args.distribute == "multiworker":
        raise ParameterError(
            f"--budget {wish.budget} is measured, and each worker would find another; prune "
            "without --retrain first, and then give the MACs that it found"
        )
    if args.continue_model_dir is not None:
        record = Path(args.continue_model_dir) / CONFIG
        before = read_json(record) if record.is_file() else {}
        measured = Measured.from_record(before, record)
    else:
        measured = meet_milliseconds(network, wish, quiet=args.quiet)
        print(f"--budget {wish.budget}: {measured}")
    return replace(wish, budget=measured.budget), measured


def _cuts(args: argparse.Namespace, wish: Wish | None) -> list[Wish]:
    """The wish, or with --iterative one for each of its layers."""
    if wish is None or not args.iterative:
        return [] if wish is None else [wish]
    return [
        replace(wish, layers={name: ratio}, fresh=wish.fresh if name in wish.fresh else ())
        for name, ratio in (wish.layers or {}).items()
    ]


def _way(args: argparse.Namespace) -> type[Retraining]:
    """How a run retrains."""
    from l3prune.label_training import LabelTraining
    from l3prune.retraining import Distillation, FineTuning

    if args.labels is not None:
        return LabelTraining
    return FineTuning if args.finetune or args.test_model else Distillation


def _mask_schedule(args: argparse.Namespace) -> MaskSchedule | None:
    from l3prune.schedules import MaskSchedule

    if args.mask_schedule is None:
        return None
    initial = args.initial_sparsity
    return MaskSchedule(
        kind=args.mask_schedule,
        frequency=args.frequency,
        begin_step=args.begin_step,
        end_step=args.end_step,
        initial_sparsity=None if initial is None else initial / 100,
        epochs_per_layer=args.epochs_per_layer,
        ramp=args.ramp,
        alpha=args.rigl_alpha,
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.pruning --help`."""
    args = parse(argv)
    load_tensorflow()
    import tf_keras as keras

    from l3prune import devices, graph, schedules
    from l3prune.evaluation import Report, measure, plot_history
    from l3prune.plan import PruningPlan
    from l3prune.pruner import make_plan, outcome, prune
    from l3prune.retraining import recipe_of
    from l3prune.training import environment
    from l3prune.weights import save_network
    from l3prune.zero_filters import removal

    # Before anything is computed.
    here = devices.Devices()
    if args.retrain:
        here = devices.begin(args.distribute, args.precision, args.xla, quiet=args.quiet)
        here.check_batch(args.train_batch_size)
    args.quiet = args.quiet or not here.chief
    schedule = _mask_schedule(args)
    recipe = recipe_of(args)
    way = _way(args)(args, here)
    whole = way.whole
    wish, measured = _measured(args, whole, _wish(args, whole))
    if wish is not None:
        # What is wrong with a later cut would show after the retraining of the first.
        if args.iterative:
            make_plan(whole, wish)
        wish, *way.later = _cuts(args, wish)
        keras.utils.set_random_seed(args.random_state)  # for fresh weights
    pruned, plan, update, found, removed = whole, PruningPlan({}), None, None, None
    # What is wrong with the wish shows before audio is decoded, which may take long.
    late = wish is not None and wish.needs_data
    if wish is not None and not late:
        pruned, plan = prune(whole, wish)
        found = outcome(whole, pruned, wish)
        if wish.zero:
            removed = removal(whole, pruned)
        if schedule is not None:
            # How many steps there are, data tell; how the student begins does not depend on it.
            pruned, _ = schedules.begin(whole, wish, schedule, 10**9, recipe.epochs)
    if args.retrain and not late:
        way.check(pruned)

    cache_dir = Path(args.cache_dir or Path(args.output_dir) / "cache")
    continued = resumed = args.continue_model_dir is not None
    # What is wrong with the input shows in here, and then no folder stays behind.
    with contextlib.ExitStack() as folders:
        folders.enter_context(new_folder(cache_dir))
        if continued:
            run_dir = Path(args.continue_model_dir)
            # The chief's word: a network file system shows the others a new file late.
            resumed = here.told_by_chief("yes" if _has_a_checkpoint(run_dir) else "no") == "yes"
            if resumed:
                _check_files(run_dir, schedule is not None)
            else:
                _check_begun(run_dir, args)
        else:
            parent = _parent(args, whole.name)
            run_dir = folders.enter_context(here.new_run_dir(parent, args.run_name))
        if continued and not late:
            _check_continued(run_dir, way.begin(pruned, plan))
        way.open(cache_dir)
        way.check_batch()
        if wish is not None and late:
            pruned, plan = prune(whole, wish, way.scoring_batches())
            found = outcome(whole, pruned, wish)
            if args.retrain:
                way.check(pruned)
            if continued:
                _check_continued(run_dir, way.begin(pruned, plan))
        if schedule is not None and wish is not None:
            steps = args.train_epoch_size or -(-way.windows // args.train_batch_size)
            _, update = schedules.begin(whole, wish, schedule, steps, recipe.epochs)
            update.epochs(steps, recipe.epochs)  # refuses a schedule that ends after the run
    begun = way.begin(pruned, plan)
    if here.chief:
        if not continued:
            save_network(begun, run_dir / PRUNED, origin={"pruned_from": str(args.weight_path)})
        further = {"budget": found, "measured": measured, "zero_filters": removed}
        write_config(
            run_dir,
            ["python", "-m", "l3prune.pruning", *(sys.argv[1:] if argv is None else argv)],
            told(args),
            environment(),
            {name: asdict(value) for name, value in further.items() if value is not None},
        )
        if found is not None and found.note:
            print(f"note: --budget {found.budget}: {found.note}", file=sys.stderr)
    if here.strategy is not None and not args.quiet:
        print(here.told(args.train_batch_size))

    states = [("unpruned", way.unpruned)]
    # Of a gradual schedule the student begins whole.
    if schedule is None or schedule.kind == "rigl":
        states.append(("student" if wish is None else "pruned", begun))
    if args.retrain:
        student = way.begin(pruned, plan)
        with here.watched():
            retrained, history = way.train(student, run_dir, recipe, update, resumed)
        if not here.chief:
            here.wait()  # for the report: SLURM may end the other tasks soon after the first
            return
        plot_history(history, run_dir / "history.png")
        states += retrained.items()
        if schedule is not None:
            plan = PruningPlan(graph.masks(student))
    report = Report()
    for name, network in states:
        figures = way.figures(name, network, run_dir)
        report = report.with_row(name, **figures, **measure(way.audio(network)))
    way.write(report, run_dir)
    if plan:
        print(plan)
    if removed is not None:
        print(removed)
    print(report)
    print(run_dir)
    here.wait()


def _parent(args: argparse.Namespace, model_name: str) -> Path:
    """EdgeL3's place of a kind of run below the output folder."""
    kind = ("reduced" if reduces(args) else "pruning") + ("_kd" if args.retrain else "")
    if args.labels is not None:
        kind = "pruning_labels" if args.retrain else kind
    if args.finetune:
        kind = f"pruning_finetune_{'filterwise' if args.filterwise else 'layerwise'}"
    folder = Path(args.output_dir) / "embedding" / kind
    return folder / subset_name(args.train_data_dir) / (args.model_type or model_name)


def _has_a_checkpoint(run_dir: Path) -> bool:
    """Whether a run left what it can go on from; else it can begin once more, if it did begin."""
    from l3prune.checkpoints import HISTORY, LATEST

    if (run_dir / LATEST).is_file():
        return True
    # The history of an epoch is written just before its checkpoint.
    history = run_dir / HISTORY
    return history.is_file() and len(history.read_text(errors="replace").splitlines()) > 2


def _check_begun(run_dir: Path, args: argparse.Namespace) -> None:
    """Refuse a folder without a run, or one that was told otherwise what to train."""
    check_file(run_dir, PRUNED)
    names = (
        *("retrain", *CHOICES, "allocation", "criterion", "mask_schedule", *MASK_SETTINGS),
        *("reduction", "batch_norm", *LABELS),
    )
    check_begun(run_dir, told(args), names)


def _check_files(run_dir: Path, gradual: bool) -> None:
    from l3prune.checkpoints import BEST, HISTORY, LATEST, epochs_done

    for name in (LATEST, PRUNED):
        check_file(run_dir, name)
    if epochs_done(run_dir):
        # There is no best epoch as long as the network is not as sparse as it is to be.
        for name in (HISTORY, *(() if gradual else (BEST,))):
            check_file(run_dir, name)


def _check_continued(run_dir: Path, pruned: keras.Model) -> None:
    from l3prune.weights import fingerprint, load_network

    # The same masks from other weights are another run too.
    if fingerprint(load_network(run_dir / PRUNED)) != fingerprint(pruned):
        raise ParameterError(
            f"the run in {run_dir} was pruned otherwise; continue it with its own weights and "
            f"sparsities (see {run_dir / CONFIG})"
        )


if __name__ == "__main__":
    sys.exit(main())
