"""Which optimizer trains, and its settings. No TensorFlow."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import Any

from l3prune.checks import check_whole
from l3prune.errors import ParameterError

#: Those that make weights or groups of weights zero, and all.
SPARSE = ("proxsg", "obproxsg", "hspg")
OPTIMIZERS = ("adam", "sgd", *SPARSE)

#: What is taken for the gradient.
DIRECTIONS = ("sgd", "adam")

#: What `descent_options` adds, by the names in parsed arguments.
DESCENT_OPTIONS = (
    *("optimizer", "regularization", "epsilon", "direction"),
    *("prox_epochs", "prox_steps", "orthant_epochs"),
)


@dataclass(frozen=True)
class Descent:
    """An optimizer and its settings; those that it does not have must be left as they are.

    Attributes
    ----------
    name : str
        One of `OPTIMIZERS`. "proxsg" and "hspg" take the groups of `zero_filters`; "obproxsg"
        takes each weight by itself.
    regularization : float
        Lambda, of the sparse ones.
    epsilon : float
        Of hspg, in [0, 1).
    direction : {"sgd", "adam"}
        Of the sparse ones.
    prox_epochs, prox_steps : int or None
        Of hspg and obproxsg: how long ProxSG's stage is, one of both. None, None: 5 epochs of
        obproxsg, none of hspg.
    orthant_epochs : int or None
        Of obproxsg, as long as the unit of the other stage says: None is for ever.

    Raises
    ------
    ParameterError
        A value outside its range, or a setting that the optimizer does not have.

    Examples
    --------
    >>> Descent("hspg", 1e-3, epsilon=0.5, prox_epochs=50).sparse
    True
    >>> Descent("sgd", epsilon=0.5)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: optimizer sgd has no epsilon; it is of hspg
    """

    name: str = "adam"
    regularization: float | None = None
    epsilon: float | None = None
    direction: str | None = None
    prox_epochs: int | None = None
    prox_steps: int | None = None
    orthant_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ParameterError(f"optimizer {self.name!r} is unknown; {', '.join(OPTIMIZERS)}")
        for setting, of in (
            ("regularization", SPARSE),
            ("direction", SPARSE),
            ("epsilon", ("hspg",)),
            ("prox_epochs", ("hspg", "obproxsg")),
            ("prox_steps", ("hspg", "obproxsg")),
            ("orthant_epochs", ("obproxsg",)),
        ):
            if getattr(self, setting) is not None and self.name not in of:
                word = "lambda" if setting == "regularization" else setting
                raise ParameterError(
                    f"optimizer {self.name} has no {word}; it is of {', '.join(of)}"
                )
        if self.sparse and self.regularization is None:
            raise ParameterError(f"optimizer {self.name} needs a lambda, such as 1e-3")
        check_amount("lambda", self.regularization, 0)
        check_amount("epsilon", self.epsilon, 0, 1)
        if self.direction not in (None, *DIRECTIONS):
            raise ParameterError(f"direction={self.direction!r}; allowed: {', '.join(DIRECTIONS)}")
        if None not in (self.prox_epochs, self.prox_steps):
            raise ParameterError("give prox_epochs or prox_steps, not both")
        for setting in ("prox_epochs", "prox_steps", "orthant_epochs"):
            if getattr(self, setting) is not None:
                check_whole(setting, getattr(self, setting), 0)

    @property
    def sparse(self) -> bool:
        """Whether it makes weights zero."""
        return self.name in SPARSE

    def __str__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        return " ".join([self.name, *(f"{k}={v}" for k, v in given.items() if v is not None)])


def check_amount(name: str, value: Any, least: float, below: float = math.inf) -> None:
    """Refuse what is neither None nor a finite number from `least` to below `below`.

    Examples
    --------
    >>> check_amount("epsilon", 1.0, 0, 1)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: epsilon=1.0 is not in [0, 1)
    """
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value < below:
        allowed = (
            f"in [{least:g}, {below:g})" if below < math.inf else f"a number from {least:g} on"
        )
        raise ParameterError(f"{name}={value!r} is not {allowed}")


def descent_options(group: argparse._ArgumentGroup, *, several: bool = False) -> None:
    """Add the options of the optimizer; `several` lambdas can be given for one run each.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> descent_options(parser.add_argument_group("training"))
    >>> descent_of(parser.parse_args(["--optimizer", "proxsg", "--lambda", "0.1"])).regularization
    0.1
    """
    add = group.add_argument
    add(
        "--optimizer",
        default="adam",
        help=f"{', '.join(OPTIMIZERS)} (%(default)s); the last three make weights or filters zero",
    )
    add(
        "--lambda",
        dest="regularization",
        type=float,
        nargs="+" if several else None,
        metavar="L",
        help="of a sparse optimizer: weight of the sum of norms in the loss"
        + ("; several: a run for each, and a table" if several else ""),
    )
    add("--epsilon", type=float, help="hspg: in [0, 1); the larger, the more becomes zero (0)")
    add("--direction", help="of a sparse optimizer: sgd, or adam's direction (sgd)")
    add(
        "--prox-epochs",
        type=int,
        metavar="N",
        help="hspg, obproxsg: epochs of ProxSG before the other kind of steps (0; obproxsg 5)",
    )
    add("--prox-steps", type=int, metavar="N", help="the same in steps")
    add(
        "--orthant-epochs",
        type=int,
        metavar="N",
        help="obproxsg: then so many epochs, or steps with --prox-steps, and ProxSG again "
        "(for ever)",
    )


def descent_of(args: argparse.Namespace) -> Descent:
    """The optimizer in the arguments that `descent_options` adds.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> descent_options(parser.add_argument_group("training"))
    >>> descent_of(parser.parse_args([])).name
    'adam'
    """
    return Descent(args.optimizer, *(getattr(args, name) for name in DESCENT_OPTIONS[1:]))
