"""What training makes small, and how it goes about it. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from l3prune.descent import Descent
from l3prune.errors import ParameterError


@dataclass(frozen=True)
class Objective:
    """What training makes small, and what it reports beside that.

    Attributes
    ----------
    loss : str or mapping
        Of Keras: its name, or class_name and config. The network's weight decay is added to it.
    metrics : tuple of str
        Of Keras.

    Examples
    --------
    >>> EMBEDDING.loss, CORRESPONDENCE.metrics
    ('mse', ('accuracy',))
    """

    loss: str | Mapping[str, Any]
    metrics: tuple[str, ...]

    def figure(self, best_by: str) -> tuple[str, int]:
        """What chooses the best epoch, as a history calls it, and 1 if the lowest is best, else -1.

        Raises
        ------
        ParameterError
            This training has no such figure.
        """
        known = ("loss", *self.metrics)
        if best_by not in known:
            raise ParameterError(f"best_by={best_by!r}; this training has {', '.join(known)}")
        return f"val_{best_by}", 1 if best_by in ("loss", "mse", "mae") else -1


#: An embedding near a given one.
EMBEDDING = Objective("mse", ("mae", "mse"))

#: Whether image and sound are of one video; see the network `avc`.
CORRESPONDENCE = Objective("categorical_crossentropy", ("accuracy",))


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are EdgeL3's.

    Attributes
    ----------
    epochs : int
        At most.
    learning_rate : float
        At the start.
    best_by : str
        Which validation figure chooses the epoch whose weights are kept: "loss", of which the
        lowest is best, or one of the objective's metrics, of which the highest is, or of errors
        the lowest.
    best_from : int
        So many epochs at the start cannot be the best, and no run ends within them.
    early_stopping_patience : int
        Epochs without a validation figure better by `min_delta` before the run ends.
    min_delta : float
        In units of the figure.
    schedule : {"plateau", "cosine", "constant", "linear"}
        Of the learning rate: multiplied by `plateau_factor` after `plateau_patience` epochs
        without a better validation loss; or half a cosine from the start to the last of `epochs`,
        which gets more out of a fixed small number of epochs; or left as it is; or in a straight
        line from epoch `decay_from` on to epoch `decay_to`, counted from 0, and constant before and
        behind.
    final_learning_rate : float
        Where the cosine would come to after the last epoch, and the line comes to.
    cosine_interval : int
        Batches from one rate of the cosine to the next, begun anew in each epoch; 0 is an epoch.
    decay_from, decay_to : int, int or None
        None: at `epochs`.
    plateau_patience, plateau_factor : int, float
    checkpoint_interval : int
        Epochs between numbered checkpoints; 0 for none.
    checkpoint_minutes : float
        Between checkpoints within an epoch, of which the latest is kept; 0 for none.
    batch_norm : {"train", "freeze", "keep"}
        "train" normalises by each batch and trains scale and shift, as EdgeL3. "freeze" first
        measures the statistics of the pruned network on training data, then trains the weights
        with BatchNorm as inference has it: what is trained is what is deployed, which wants far
        fewer steps. "keep" does so without the measurement, to go on from a network that was
        trained: its weights are used to its statistics.
    seed : int
    descent : Descent
        Which optimizer trains; Adam by default.

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> Recipe().learning_rate
    1e-05
    """

    epochs: int = 300
    learning_rate: float = 1e-5
    best_by: str = "loss"
    best_from: int = 0
    early_stopping_patience: int = 10
    min_delta: float = 1e-4
    schedule: str = "plateau"
    final_learning_rate: float = 0.0
    cosine_interval: int = 0
    plateau_patience: int = 5
    plateau_factor: float = 0.1
    decay_from: int = 0
    decay_to: int | None = None
    checkpoint_interval: int = 10
    checkpoint_minutes: float = 10
    batch_norm: str = "train"
    seed: int = 20180216
    descent: Descent = field(default_factory=Descent)

    def __post_init__(self):
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("best_from", self.best_from, 0),
            ("early_stopping_patience", self.early_stopping_patience, 0),
            ("plateau_patience", self.plateau_patience, 0),
            ("cosine_interval", self.cosine_interval, 0),
            ("checkpoint_interval", self.checkpoint_interval, 0),
            ("decay_from", self.decay_from, 0),
            ("decay_to", self.decay_end, self.decay_from + 1),
            ("seed", self.seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(f"{name}={value!r} is not a whole number ≥ {least}")
        if self.seed >= 2**32:
            raise ParameterError(f"seed={self.seed} is not below 2^32, as NumPy's seeds are")
        if self.schedule not in ("plateau", "cosine", "constant", "linear"):
            raise ParameterError(
                f"schedule={self.schedule!r}; allowed: 'plateau', 'cosine', 'constant', 'linear'"
            )
        if self.best_from >= self.epochs:
            raise ParameterError(
                f"best_from={self.best_from} leaves none of {self.epochs} epochs to be the best"
            )
        for name in (
            *("learning_rate", "final_learning_rate", "min_delta"),
            *("plateau_factor", "checkpoint_minutes"),
        ):
            if isinstance(getattr(self, name), bool) or not isinstance(
                getattr(self, name), int | float | np.number
            ):
                raise ParameterError(f"{name}={getattr(self, name)!r} is not a number")
        if not 0 < self.learning_rate < math.inf:
            raise ParameterError(f"learning_rate={self.learning_rate} is not a positive number")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ParameterError(
                f"final_learning_rate={self.final_learning_rate} is not in 0 … "
                f"{self.learning_rate}, the learning rate that it comes from"
            )
        for name in ("min_delta", "checkpoint_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ParameterError(f"{name}={getattr(self, name)} is not a number ≥ 0")
        if not 0 < self.plateau_factor < 1:
            raise ParameterError(f"plateau_factor={self.plateau_factor} is not in (0, 1)")
        if self.batch_norm not in ("train", "freeze", "keep"):
            raise ParameterError(
                f"batch_norm={self.batch_norm!r}; allowed: 'train', 'freeze', 'keep'"
            )
        if self.descent.name in ("proxsg", "hspg") and self.batch_norm != "train":
            raise ParameterError(
                f"optimizer {self.descent.name} makes gamma and beta zero with their filters, and "
                f"batch_norm={self.batch_norm!r} leaves them as they are; take 'train'"
            )

    @property
    def decay_end(self) -> int:
        """`decay_to`, the last of `epochs` if there is none."""
        return max(self.epochs, self.decay_from + 1) if self.decay_to is None else self.decay_to

    def rate(self, epoch: float) -> float:
        """The learning rate of an epoch, from 0, as far as the loss does not change it.

        Within an epoch, of a fraction.

        Examples
        --------
        >>> recipe = Recipe(learning_rate=1e-3, schedule="linear", decay_from=100)
        >>> [round(recipe.rate(epoch), 6) for epoch in (0, 100, 200, 300)]
        [0.001, 0.001, 0.0005, 0.0]
        """
        if self.schedule == "cosine":
            span = self.learning_rate - self.final_learning_rate
            cosine = 0.5 + 0.5 * math.cos(math.pi * epoch / self.epochs)
            return self.final_learning_rate + span * cosine
        if self.schedule == "linear":
            share = (epoch - self.decay_from) / (self.decay_end - self.decay_from)
            share = min(max(share, 0), 1)
            return self.learning_rate + share * (self.final_learning_rate - self.learning_rate)
        return self.learning_rate
