"""The options of python -m l3prune.compare --config, and the cells of the table. No TensorFlow."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from l3prune.arguments import FROM_DATA, training_options
from l3prune.configs import json_object, read_options, typed_options
from l3prune.criteria import get_criterion
from l3prune.descent import check_amount
from l3prune.errors import ParameterError

#: Ways that take a criterion, with what they do.
WAYS = {"filterwise": "filters removed", "layerwise": "weights set to zero"}

#: The row of the network as it is.
UNPRUNED = "unpruned"

#: Options without which there is nothing to do.
_NEEDED = ("config", "network", "dataset", "data_dir", "output_dir")

#: Options that a cell's result does not depend on: which cells there are, and how they are run.
_ASIDE = (
    *("config", "output_dir", "work_dir", "data_dir", "network", "quiet", "task", "tasks"),
    *("folds", "filterwise", "layerwise", "trained", "ratios", "sparsities", "strengths", "seeds"),
    *("random_state", "checkpoint_interval", "checkpoint_minutes"),
)


@dataclass(frozen=True)
class Cell:
    """One network that is made, retrained and judged.

    Attributes
    ----------
    folds : tuple of int
        The test folds that it is judged on.
    way : str
        One of `WAYS`, a way that trains first, or "unpruned".
    criterion : str
        Empty for ways that take none.
    amount : float
        Percent of filters or weights that go; of some ways the strength of a penalty.
    seed : int

    Examples
    --------
    >>> Cell((1,), "filterwise", "l1", 50, 0).name
    'fold1-filterwise-l1-50-seed0'
    """

    folds: tuple[int, ...]
    way: str
    criterion: str
    amount: float
    seed: int

    @property
    def name(self) -> str:
        """Names its file."""
        criterion = re.sub(r"[^\w.]", "_", self.criterion)
        words = (self.way, *([criterion] if criterion else ()), f"{self.amount:g}")
        folds = "+".join(map(str, self.folds))
        return "-".join((f"fold{folds}", *words, f"seed{self.seed}"))


def new_parser() -> argparse.ArgumentParser:
    """The parser of the command.

    Examples
    --------
    >>> new_parser().parse_args(["--config", "a.json"]).tasks
    1
    """
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.compare",
        usage="%(prog)s --config FILE [options]",
        allow_abbrev=False,
        description="One network, one corpus, one budget of training: every criterion and method "
        "at several ratios and seeds, judged on test folds before and after retraining.",
        epilog="--output-dir receives methods.csv, methods.json, methods.md and methods.png when "
        "all is measured; each measurement is kept in --work-dir and found again, so the same "
        "command goes on after a stop. Exit code: 0 done, 2 wrong input, 75 stopped by a signal.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="JSON with any of these options; flags win over it")
    add("--output-dir", metavar="DIR", help="where the table goes")
    add("--work-dir", metavar="DIR", help="measurements and caches (OUTPUT_DIR/work)")
    add("--task", type=int, metavar="N", help="only the N-th part of the cells, of --tasks")
    add("--tasks", type=int, default=1, help="parts that the cells are shared out to (%(default)s)")
    add("--quiet", action="store_true", help="no progress; only the table")

    add = parser.add_argument_group("network and data").add_argument
    add(
        "--network",
        help="a weight file or a published name: its embedding is judged by a linear classifier, "
        "and distilled; or a name of create_network, which is trained on the labels first",
    )
    add("--network-arguments", type=json_object, metavar="JSON", help="of create_network")
    add("--dataset", help="the corpus, such as esc50")
    add("--data-dir", metavar="DIR", help="its root folder")
    add("--folds", nargs="+", type=int, metavar="N", help="test folds; default: all")
    add(
        "--held-out",
        type=int,
        default=1,
        metavar="N",
        help="embeddings: test folds that one distillation leaves out and is judged on, which "
        "takes fewer of them (%(default)s)",
    )
    add("--hop-size", type=float, default=1.0, help="embeddings: seconds (%(default)s)")
    add(
        "--teacher-epochs", type=int, default=40, help="labels: of the first training (%(default)s)"
    )

    add = parser.add_argument_group("what is compared").add_argument
    add("--filterwise", nargs="+", metavar="CRITERION", help="remove filters by these")
    add("--layerwise", nargs="+", metavar="CRITERION", help="set weights to zero by these")
    add("--trained", nargs="+", metavar="METHOD", help="methods that train with a penalty first")
    add("--ratios", nargs="+", type=float, metavar="PERCENT", help="filters that go of each layer")
    add("--sparsities", nargs="+", type=float, metavar="PERCENT", help="weights that go of each")
    add("--strengths", nargs="+", type=float, metavar="LAMBDA", help="penalties of some methods")
    add("--gamma-l1", type=float, default=1e-4, help="slimming: of its penalty (%(default)s)")
    add("--hspg-epsilon", type=float, default=0.5, help="hspg: in [0, 1) (%(default)s)")
    add("--seeds", nargs="+", type=int, default=[0], help="of retraining and chance (%(default)s)")
    add("--criterion-inputs", type=int, default=64, help="for criteria from data (%(default)s)")
    add("--rounds", type=int, default=10, help="of the timing (%(default)s)")
    training_options(
        parser.add_argument_group("retraining: the budget, the same for all"),
        epochs=5,
        learning_rate=1e-3,
        seed=0,
        schedule="cosine",
        patience=1000,
        batch_size=16,
    )
    return parser


def wanted(argv: Sequence[str]) -> bool:
    """Whether a command line of l3prune.compare asks for this table.

    Examples
    --------
    >>> wanted(["--config", "a.json"]), wanted(["a.h5", "b.h5"])
    (True, False)
    """
    return any(word == "--config" or word.startswith("--config=") for word in argv)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options from the command line, over those of --config, over the defaults; checked.

    Raises
    ------
    ParameterError
        An option that is unknown, missing or outside its range, or a criterion that is unknown.

    Examples
    --------
    >>> parse(["--config", "/nowhere.json"])
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: cannot read /nowhere.json: No such file or directory
    """
    parser = new_parser()
    typed = typed_options(argv, new_parser())
    if "config" in typed:
        parser.set_defaults(**read_options(typed["config"], new_parser()))
    args = parser.parse_args(argv)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    missing = [_flag(name) for name in _NEEDED if not getattr(args, name)]
    if missing:
        raise ParameterError(f"{', '.join(missing)} is needed: give it, or put it into --config")
    for name in ("filterwise", "layerwise", "trained", "ratios", "sparsities", "strengths"):
        setattr(args, name, getattr(args, name) or [])
    for way, amounts in (("filterwise", "ratios"), ("layerwise", "sparsities")):
        if bool(getattr(args, way)) and not getattr(args, amounts):
            raise ParameterError(f"--{way} needs --{amounts}")
        for name in getattr(args, way):
            if name not in FROM_DATA:
                get_criterion(name)
            elif way == "layerwise":
                raise ParameterError(f"--layerwise {name}: it scores filters; take --filterwise")
    if not (args.filterwise or args.layerwise or args.trained):
        raise ParameterError("nothing to compare: give --filterwise, --layerwise or --trained")
    for name in ("ratios", "sparsities"):
        for percent in getattr(args, name):
            if not 0 < percent < 100:
                raise ParameterError(f"--{name} {percent:g} is not above 0 and below 100 percent")
    for strength in args.strengths:
        if not 0 < strength < float("inf"):
            raise ParameterError(f"--strengths {strength:g} is not a positive number")
    for name in (
        *("folds", "seeds", "filterwise", "layerwise", "trained"),
        *("ratios", "sparsities", "strengths"),
    ):
        values = getattr(args, name) or []
        for value in values:
            if values.count(value) > 1:
                raise ParameterError(f"{_flag(name)} has {value} twice")
    for name, least in (
        *(("tasks", 1), ("held_out", 1), ("teacher_epochs", 1), ("rounds", 1)),
        *(("criterion_inputs", 1), ("train_batch_size", 1), ("validation_batch_size", 1)),
    ):
        if getattr(args, name) < least:
            raise ParameterError(f"{_flag(name)} {getattr(args, name)} is not at least {least}")
    if not 0 < args.gamma_l1 < float("inf"):
        raise ParameterError(f"--gamma-l1 {args.gamma_l1:g} is not a positive number")
    check_amount("--hspg-epsilon", args.hspg_epsilon, 0, 1)
    for seed in args.seeds:
        if not 0 <= seed < 2**32:
            raise ParameterError(f"--seeds {seed} is not in 0 … 2^32 - 1")
    if args.task is not None and not 1 <= args.task <= args.tasks:
        raise ParameterError(f"--task {args.task} is not in 1 … {args.tasks} (--tasks)")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def cells(args: argparse.Namespace, folds: Sequence[int], control: bool) -> list[Cell]:
    """All cells of the table, those of the same folds together.

    Parameters
    ----------
    args : argparse.Namespace
        From `parse`, with `amounts` of the ways that train first: way -> amounts.
    folds : sequence of int
        To test on.
    control : bool
        Retrain the unpruned network too, for each seed.

    Examples
    --------
    >>> args = new_parser().parse_args(["--filterwise", "l1", "--ratios", "50"])
    >>> args.layerwise, args.amounts = [], {}
    >>> [cell.name for cell in cells(args, [1], control=False)]
    ['fold1-unpruned-0-seed0', 'fold1-filterwise-l1-50-seed0']
    """
    columns = [("filterwise", name, each) for name in args.filterwise for each in args.ratios]
    columns += [("layerwise", name, each) for name in args.layerwise for each in args.sparsities]
    columns += [(way, "", each) for way, amounts in args.amounts.items() for each in amounts]
    found = []
    for start in range(0, len(folds), args.held_out):
        group = tuple(folds[start : start + args.held_out])
        for seed in args.seeds if control else args.seeds[:1]:
            found.append(Cell(group, UNPRUNED, "", 0, seed))
        found += [Cell(group, *column, seed) for column in columns for seed in args.seeds]
    return found


def identity(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a cell's result depends on, besides the cell itself, that are not defaults.

    Examples
    --------
    >>> identity(new_parser().parse_args(["--num-epochs", "9", "--seeds", "3"]))
    {'num_epochs': 9}
    """
    parser = new_parser()
    return {
        name: value
        for name, value in vars(args).items()
        if name not in (*_ASIDE, "amounts") and value != parser.get_default(name)
    }
