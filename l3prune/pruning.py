"""python -m l3prune.pruning: prune a network, retrain it by distillation, report."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l3prune.audio import find_audio, load_audio
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import new_folder, read_json, write_json
from l3prune.options import CHOICES, MASK_SETTINGS, MODEL_TYPES, chosen_of, parse, reduces
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    import tf_keras as keras

    from l3prune.budget import Outcome
    from l3prune.pruner import Wish
    from l3prune.schedules import MaskSchedule
    from l3prune.speed import Measured
    from l3prune.training import Recipe
    from l3prune.windows import WindowSource

#: The pruned network before retraining, and the run's arguments, in a run's folder.
PRUNED = "model_pruned.h5"
CONFIG = "config.json"


def _wish(args: argparse.Namespace, network: keras.Model) -> Wish | None:
    """How to prune a network; None if nothing of it goes."""
    from l3prune.pruner import Wish, measured_curves

    if not chosen_of(args, CHOICES):
        return None
    each = args.filter_ratio if args.filterwise else args.sparsity
    amount = None if each is None else [percent / 100 for percent in each]
    overall = args.global_filter_ratio if args.filterwise else args.global_sparsity
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
    if args.continue_model_dir is not None:
        record = Path(args.continue_model_dir) / CONFIG
        before = read_json(record) if record.is_file() else {}
        if not isinstance(before, dict) or not isinstance(before.get("measured"), dict):
            raise ParameterError(f"{record} has no measured budget to continue with")
        measured = Measured(**before["measured"])
    else:
        measured = meet_milliseconds(network, wish, quiet=args.quiet)
        print(f"--budget {wish.budget}: {measured}")
    return replace(wish, budget=measured.budget), measured


def _recipe(args: argparse.Namespace) -> Recipe:
    from l3prune.training import Recipe

    return Recipe(
        epochs=args.num_epochs,
        learning_rate=args.learning_rate,
        early_stopping_patience=args.early_stopping_patience,
        min_delta=args.min_delta,
        schedule=args.schedule,
        plateau_patience=args.plateau_patience,
        plateau_factor=args.plateau_factor,
        checkpoint_interval=args.checkpoint_interval,
        batch_norm=args.batch_norm,
        seed=args.random_state,
    )


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


def _student(args: argparse.Namespace, teacher: keras.Model) -> keras.Model:
    """The network to prune: the teacher, some layers of it, or another."""
    import tf_keras as keras

    from l3prune import models
    from l3prune.networks import create_network, l3

    student = teacher
    keras.utils.set_random_seed(args.random_state)  # for fresh weights
    if args.student in l3.SPECS:
        student = create_network(args.student, front_end=l3.front_end(teacher).form)
    elif args.student is not None:
        student = models.load(args.student, input="waveform")
    if args.include_layers is not None or args.from_conv_layer is not None:
        student = l3.depth_student(student, args.include_layers, args.from_conv_layer)
    return student


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.pruning --help`."""
    args = parse(argv)
    load_tensorflow()
    from l3prune import graph, models, schedules, surgery
    from l3prune.distillation import check_pair, distill
    from l3prune.evaluation import Report, measure, plot_history
    from l3prune.networks import l3
    from l3prune.plan import PruningPlan
    from l3prune.pruner import outcome, prune
    from l3prune.weights import save_network

    schedule = _mask_schedule(args)
    recipe = _recipe(args)
    model_type = MODEL_TYPES.get(args.model_type, args.model_type)
    # The data are sound, whatever the network in the file was trained on.
    teacher = models.load(args.weight_path, model_type, input="waveform")
    whole = _student(args, teacher)
    wish, measured = _measured(args, whole, _wish(args, whole))
    pruned, plan, update, found = whole, PruningPlan({}), None, None
    # What is wrong with the wish shows before audio is decoded, which may take long.
    late = wish is not None and wish.needs_data
    if wish is not None and not late:
        pruned, plan = prune(whole, wish)
        found = outcome(whole, pruned, wish)
        if schedule is not None:
            # How many steps there are, data tell; how the student begins does not depend on it.
            pruned, _ = schedules.begin(whole, wish, schedule, 10**9, recipe.epochs)
    if args.retrain and not late:
        check_pair(pruned, teacher, args.reduction)

    cache_dir = Path(args.cache_dir or Path(args.output_dir) / "cache")
    continued = resumed = args.continue_model_dir is not None
    # What is wrong with the input shows in here, and then no folder stays behind.
    with contextlib.ExitStack() as folders:
        folders.enter_context(new_folder(cache_dir))
        if continued:
            run_dir = Path(args.continue_model_dir)
            resumed = _has_an_epoch(run_dir)
            if resumed:
                _check_files(run_dir, schedule is not None)
            else:
                _check_begun(run_dir, args)
            if not late:
                _check_continued(run_dir, pruned)
        else:
            run_dir = folders.enter_context(_new_run_dir(args, teacher.name))
        rates = l3.front_end(whole).sample_rate, l3.front_end(teacher).sample_rate
        train, validation = _open_data(args, rates, cache_dir)
        if wish is not None and late:
            pruned, plan = prune(whole, wish, _scoring_batches(args, whole, train[0]))
            found = outcome(whole, pruned, wish)
            if args.retrain:
                check_pair(pruned, teacher, args.reduction)
            if continued:
                _check_continued(run_dir, pruned)
        if schedule is not None and wish is not None:
            steps = args.train_epoch_size or -(-len(train[0]) // args.train_batch_size)
            _, update = schedules.begin(whole, wish, schedule, steps, recipe.epochs)
            update.epochs(steps, recipe.epochs)  # refuses a schedule that ends after the run
    if not continued:
        save_network(pruned, run_dir / PRUNED, origin={"pruned_from": str(args.weight_path)})
    _write_config(run_dir, args, sys.argv[1:] if argv is None else argv, found, measured)
    if found is not None and found.note:
        print(f"note: --budget {found.budget}: {found.note}", file=sys.stderr)

    states = [("unpruned", teacher)]
    # Of a gradual schedule the student begins whole.
    if schedule is None or schedule.kind == "rigl":
        states.append(("student" if wish is None else "pruned", pruned))
    if args.retrain:
        student = surgery.remove_filters(pruned, PruningPlan({}))  # a copy
        history = distill(
            student,
            teacher,
            train,
            validation,
            run_dir,
            reduction=args.reduction,
            recipe=recipe,
            batch_size=args.train_batch_size,
            validation_batch_size=args.validation_batch_size,
            train_epoch_size=args.train_epoch_size,
            validation_epoch_size=args.validation_epoch_size,
            cache_dir=cache_dir,
            pruner=update,
            resume=resumed,
            quiet=args.quiet,
        )
        plot_history(history, run_dir / "history.png")
        states.append(("retrained", student))
        if schedule is not None:
            plan = PruningPlan(graph.masks(student))
    report = Report()
    for name, network in states:
        errors = _errors(args, name, network, teacher, validation, cache_dir, run_dir)
        report = report.with_row(name, **errors, **measure(network))
    report.to_json(run_dir / "report.json")
    if plan:
        print(plan)
    print(report)
    print(run_dir)


def _open_data(
    args: argparse.Namespace, rates: tuple[int, int], cache_dir: Path
) -> tuple[tuple[WindowSource, WindowSource], tuple[WindowSource, WindowSource]]:
    """The windows to train and to validate on, each at the student's and the teacher's rate.

    Files are decoded into the cache, which may take long; so first comes a look at the headers of
    both sides' files, for which nothing is written.
    """
    from l3prune.distillation import open_pair
    from l3prune.windows import open_windows

    folders = (args.train_data_dir, args.validation_data_dir)
    for folder in folders:
        audio = find_audio(folder)
        if not audio or any(Path(folder).rglob("*.h5")):
            # Shards, or an error: neither writes anything.
            rate = max(rates)
            open_windows(folder, rate, cache_dir, hop_size=args.hop_size, quiet=args.quiet)
        for path in audio:
            if not _has_audio_header(path):
                load_audio(path)  # says what is wrong
    train, validation = (
        open_pair(folder, rates, cache_dir, hop_size=args.hop_size, quiet=args.quiet)
        for folder in folders
    )
    # Validation may end with a smaller batch. In training all are of one size, and a batch of more
    # windows than there are would have some of them twice.
    if args.retrain and args.train_batch_size > len(train[0]):
        raise ParameterError(
            f"--train-batch-size {args.train_batch_size} is more than the {len(train[0])} windows "
            f"in {args.train_data_dir}; give at most so many, or more audio, or a smaller "
            "--hop-size"
        )
    return train, validation


def _scoring_batches(
    args: argparse.Namespace, network: keras.Model, windows: WindowSource
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training windows for a criterion that scores filters on data, with targets for taylor.

    The targets are the mean embedding: the loss is what the embedding tells apart, its variance.
    At a network's own embeddings, a gradient of the distance to them would be zero.
    """
    from l3prune.networks import inference
    from l3prune.scan import Spread

    chosen = Spread(windows, args.criterion_windows)
    size = args.validation_batch_size
    starts = range(0, len(chosen), size)
    batches = [np.arange(start, min(start + size, len(chosen))) for start in starts]
    infer = inference(network)
    total = sum(infer(chosen.read(batch)).sum(axis=0, dtype=np.float64) for batch in batches)
    mean = np.asarray(total / len(chosen), np.float32)
    for batch in batches:
        yield chosen.read(batch), np.tile(mean, (len(batch), 1))


def _errors(
    args: argparse.Namespace,
    name: str,
    network: keras.Model,
    teacher: keras.Model,
    validation: tuple[WindowSource, WindowSource],
    cache_dir: Path,
    run_dir: Path,
) -> dict[str, float | None]:
    """How far a network's embedding is from the teacher's, as far as the two compare."""
    from l3prune.distillation import check_pair, unexplained_variance
    from l3prune.evaluation import embedding_mse
    from l3prune.reduction import REDUCTION, Reduction

    if args.reduction is None:
        try:
            check_pair(network, teacher, None)
        except ParameterError:
            return {"validation_mse": None}
        windows = validation[1]
        return {
            "validation_mse": embedding_mse(network, teacher, windows, cache_dir, quiet=args.quiet)
        }
    # A linear map is learned along with its student, and is of no other.
    if network is teacher or (args.reduction == "linear" and name != "retrained"):
        return {"validation_unexplained": None}
    reduction = Reduction.load(run_dir / REDUCTION)
    return {
        "validation_unexplained": unexplained_variance(
            network,
            teacher,
            validation,
            cache_dir,
            reduction,
            batch_size=args.validation_batch_size,
            quiet=args.quiet,
        )
    }


def _has_audio_header(path: Path) -> bool:
    import soundfile

    try:
        return soundfile.info(path).frames > 0
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return False


def _has_an_epoch(run_dir: Path) -> bool:
    """Whether a run left what it can go on from; else it can begin once more, if it did begin."""
    from l3prune.training import HISTORY, LATEST

    if (run_dir / LATEST).is_file():
        return True
    # The history of an epoch is written just before its checkpoint.
    history = run_dir / HISTORY
    return history.is_file() and len(history.read_text(errors="replace").splitlines()) > 2


def _check_begun(run_dir: Path, args: argparse.Namespace) -> None:
    """Refuse a folder without a run, or one that was told otherwise what to train."""
    for name in (PRUNED, CONFIG):
        _check_file(run_dir, name)
    config = read_json(run_dir / CONFIG)
    before = config.get("arguments") if isinstance(config, dict) else None
    if not isinstance(before, dict):
        raise L3PruneError(f"{run_dir / CONFIG} is damaged: it has no arguments of a run")
    now = _arguments(args)
    for name in (
        *("retrain", *CHOICES, "allocation", "criterion", "mask_schedule", *MASK_SETTINGS),
        *("reduction", "batch_norm"),
    ):
        if before.get(name) != now.get(name):
            raise ParameterError(
                f"the run in {run_dir} was begun with {name}={before.get(name)!r}, not "
                f"{now.get(name)!r}; continue it with its own arguments (see {run_dir / CONFIG})"
            )


def _check_files(run_dir: Path, gradual: bool) -> None:
    from l3prune.training import BEST, HISTORY, LATEST

    # There is no best epoch as long as the network is not as sparse as it is to be.
    for name in (HISTORY, LATEST, *(() if gradual else (BEST,)), PRUNED):
        _check_file(run_dir, name)


def _check_file(run_dir: Path, name: str) -> None:
    if not (run_dir / name).is_file():
        raise L3PruneError(
            f"{run_dir} has no {name}, so there is no run to continue there; give the folder of a "
            "run with --retrain"
        )


def _check_continued(run_dir: Path, pruned: keras.Model) -> None:
    from l3prune.weights import fingerprint, load_network

    # The same masks from other weights are another run too.
    if fingerprint(load_network(run_dir / PRUNED)) != fingerprint(pruned):
        raise ParameterError(
            f"the run in {run_dir} was pruned otherwise; continue it with its own weights and "
            f"sparsities (see {run_dir / CONFIG})"
        )


def _write_config(
    run_dir: Path,
    args: argparse.Namespace,
    argv: Sequence[str],
    found: Outcome | None,
    measured: Measured | None,
) -> None:
    """Write what the run was told, and how near its budget it came; when it is continued otherwise,
    keep what it was told before."""
    from l3prune.training import environment

    arguments = _arguments(args)
    config = {
        "command": ["python", "-m", "l3prune.pruning", *argv],
        "arguments": arguments,
        "versions": environment(),
    }
    if found is not None:
        config["budget"] = asdict(found)
    if measured is not None:
        config["measured"] = asdict(measured)
    if (run_dir / CONFIG).is_file():
        before = read_json(run_dir / CONFIG)
        if before.get("arguments") == arguments:
            return
        config["earlier"] = [*before.pop("earlier", []), before]
    write_json(run_dir / CONFIG, config)


def _arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(args).items()
        if value is not None
        and value is not False
        and name not in ("config", "continue_model_dir", "quiet")
    }


@contextlib.contextmanager
def _new_run_dir(args: argparse.Namespace, model_name: str) -> Iterator[Path]:
    """A folder that no other run has, at EdgeL3's place below the output folder.

    It is removed when the block raises and has written nothing into it.
    """
    subset = Path(args.train_data_dir).resolve().name.rsplit("_", 1)[0]
    parent = (
        Path(args.output_dir)
        / "embedding"
        / (("reduced" if reduces(args) else "pruning") + ("_kd" if args.retrain else ""))
        / subset
        / (args.model_type or model_name)
    )
    with new_folder(parent):
        run_dir = _make_free(parent, args.run_name)
        try:
            yield run_dir
        except BaseException:
            with contextlib.suppress(OSError):
                run_dir.rmdir()
            raise


def _make_free(parent: Path, run_name: str | None) -> Path:
    name = run_name or datetime.now().strftime("%Y%m%d%H%M%S")
    for attempt in range(1000):
        run_dir = parent / (f"{name}-{attempt}" if attempt else name)
        try:
            run_dir.mkdir()
        except OSError as error:
            if not isinstance(error, FileExistsError):
                raise L3PruneError(f"cannot make the folder {run_dir}: {error.strerror}") from error
            if run_name:
                raise L3PruneError(
                    f"{run_dir} exists; give another --run-name, or --continue-model-dir"
                ) from None
            continue  # jobs of an array start in the same second
        return run_dir
    raise L3PruneError(f"no free name for a run in {parent}")


if __name__ == "__main__":
    sys.exit(main())
