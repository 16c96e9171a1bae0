"""Optimizers that make groups of weights exactly zero while they train: ProxSG, OBProxSG, HSPG.

All make f(x) + lambda * (sum of the groups' l2 norms) small, f being the loss. ProxSG shrinks each
group after a step of gradient descent; noise of small batches brings back what it made zero. HSPG
(half-space projection) does so for a while, and then sets those groups to zero for good that a step
takes out of their half-space. OBProxSG is the same for single weights: groups of one, in turns. See
docs/hspg.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.checks import check_whole
from l3prune.descent import DIRECTIONS, check_amount
from l3prune.errors import ParameterError

#: Adam's.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7


@keras.utils.register_keras_serializable(package="l3prune")
class ProxSG(keras.optimizers.Optimizer):
    """Stochastic gradient descent, each step followed by the shrinking of all groups.

    With the trial x - a d of a step, a being the learning rate and d the direction, each group
    becomes max(0, 1 - a lambda / ||trial||) trial.

    Parameters
    ----------
    learning_rate : float or keras.optimizers.schedules.LearningRateSchedule
    groups : sequence of (array of int or None), or None
        For each variable, in the order of a network's trainable ones, the numbers of the groups
        that its elements are of: arrays of as many axes as the variable, either as long as its or
        of length one. -1 stands for no group, and so does None for a whole variable. None: each
        weight is a group by itself. See `zero_filters.variable_groups`.
    regularization : float
        Lambda, not negative.
    direction : {"sgd", "adam"}
        The gradient, or Adam's quotient of its moments.

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> x = tf.Variable([3.0, 4.0])
    >>> optimizer = ProxSG(0.1, [np.array([0, 0])], regularization=1.0)
    >>> _ = optimizer.apply_gradients([(tf.zeros(2), x)])
    >>> x.numpy()
    array([2.94, 3.92], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        groups: Sequence[Any] | None = None,
        regularization: float = 1e-3,
        direction: str = "sgd",
        name: str = "ProxSG",
        **kwargs: Any,
    ) -> None:
        check_amount("lambda", regularization, 0)
        if direction not in DIRECTIONS:
            raise ParameterError(f"direction={direction!r}; allowed: {', '.join(DIRECTIONS)}")
        for option in ("weight_decay", "use_ema"):
            if kwargs.get(option):
                raise ParameterError(f"{option}={kwargs[option]!r}: {name} has none; leave it out")
        # Keras's own would compile variable by variable, and decay by zero.
        kwargs = {**kwargs, "jit_compile": False, "weight_decay": None}
        super().__init__(name=name, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.regularization = float(regularization)
        self.direction = direction
        # Not tracked: Keras would wrap the list.
        self._groups = self._no_dependency(None if groups is None else [*map(_array, groups)])

    def build(self, var_list):
        """Make the moments; see Keras."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        if self._groups is not None:
            self._check_groups(var_list)
        self._moments = [
            [self.add_variable_from_reference(each, name) for each in var_list]
            for name in (("m", "v") if self.direction == "adam" else ())
        ]
        self._built = True

    def _check_groups(self, var_list) -> None:
        if len(self._groups) != len(var_list):
            raise ParameterError(
                f"groups for {len(self._groups)} variables, and there are {len(var_list)} to "
                "train; give one entry for each, None for those of no group"
            )
        for numbers, variable in zip(self._groups, var_list, strict=True):
            shape = tuple(variable.shape)
            if numbers is not None and (
                numbers.ndim != len(shape)
                or any(n not in (1, size) for n, size in zip(numbers.shape, shape, strict=True))
            ):
                raise ParameterError(
                    f"groups of shape {numbers.shape} for {variable.name} of shape {shape}; along "
                    "each axis give one number, or one for each element"
                )

    def _distributed_apply_gradients_fn(self, distribution, grads_and_vars, **kwargs):
        # All variables at once, on each device: groups reach over variables.
        gradients, variables = zip(*grads_and_vars, strict=True)
        places = [self._index_dict[self._var_key(each)] for each in variables]
        if self._groups is not None:
            missing = [
                number
                for number, each in enumerate(self._groups)
                if each is not None and number not in places
            ]
            if missing:
                raise ParameterError(
                    f"{len(missing)} variables with groups have no gradient, the first is number "
                    f"{missing[0]}; leave them out of the groups"
                )
        moments = [[kind[place] for place in places] for kind in self._moments]
        distribution.extended.update(
            variables[0],
            lambda first, *given: self._step(places, *given),
            args=(list(gradients), list(variables), moments),
            group=False,
        )
        return self.iterations.assign_add(1)

    def update_step(self, gradient, variable):
        """Not used: a step is of all variables."""
        raise NotImplementedError

    def _step(self, places, gradients, variables, moments) -> None:
        kind = variables[0].dtype
        rate = tf.cast(self.learning_rate, kind)
        gradients = [tf.convert_to_tensor(each) for each in gradients]
        moves = [rate * each for each in self._directions(gradients, variables, moments)]
        values = [tf.convert_to_tensor(each) for each in variables]
        if self._groups is None:
            threshold = self.regularization * rate
            for variable, x, move in zip(variables, values, moves, strict=True):
                variable.assign(self._each_weight(x, x - move, threshold))
            return
        sums = _Sums([self._groups[place] for place in places], values, moves)
        keep, shrink = self._rule(sums, rate)
        for variable, x, move, *each in zip(
            variables, values, moves, sums.spread(keep, 1), sums.spread(shrink, 0), strict=True
        ):
            variable.assign(x - move if each[0] is None else _moved(x, move, *each))

    def _directions(self, gradients, variables, moments):
        if self.direction == "sgd":
            return gradients
        kind = variables[0].dtype
        time = tf.cast(self.iterations + 1, kind)
        scale = tf.sqrt(1 - tf.pow(tf.cast(_BETA_2, kind), time))
        scale /= 1 - tf.pow(tf.cast(_BETA_1, kind), time)
        found = []
        for gradient, m, v in zip(gradients, *moments, strict=True):
            first = m.assign_add((gradient - m) * (1 - _BETA_1))
            second = v.assign_add((tf.square(gradient) - v) * (1 - _BETA_2))
            found.append(scale * first / (tf.sqrt(second) + _EPSILON))
        return found

    def _each_weight(self, x: tf.Tensor, trial: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
        """The step of weights that are groups by themselves."""
        return _soft(trial, threshold)

    def _rule(self, sums: _Sums, rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What each group is multiplied by after the step, and the share it loses before it."""
        return self._prox(sums, rate)

    def _prox(self, sums: _Sums, rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        norm = tf.sqrt(sums.trial())
        # A group of no norm has nothing to shrink.
        share = tf.where(norm > 0, self.regularization * rate / norm, tf.zeros_like(norm))
        return tf.maximum(1 - share, 0), tf.zeros_like(norm)

    def get_config(self):
        """See Keras."""
        config = super().get_config()
        del config["weight_decay"], config["jit_compile"]
        groups = self._groups
        if groups is not None:
            groups = [None if each is None else each.tolist() for each in groups]
        return {
            **config,
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "groups": groups,
            "regularization": self.regularization,
            "direction": self.direction,
        }


class _Staged(ProxSG):
    """ProxSG in some steps, and in the others a step within half-spaces.

    There the trial of a group x that is not zero is x - a (d + lambda x / ||x||). It becomes zero
    if <trial, x> < epsilon ||x||^2, and else the trial. Groups that are zero stay so.
    """

    def __init__(self, *args: Any, epsilon: float, steps_per_epoch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_amount("epsilon", epsilon, 0, 1)
        check_whole("steps_per_epoch", steps_per_epoch, 1)
        self.epsilon = float(epsilon)
        self.steps_per_epoch = int(steps_per_epoch)

    def _proximal(self, epoch: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def _rule(self, sums, rate):
        return tf.cond(
            self._proximal(self.iterations // self.steps_per_epoch),
            lambda: self._prox(sums, rate),
            lambda: self._half_space(sums, rate),
        )

    def _each_weight(self, x, trial, threshold):
        # By itself, since sums and norms of one weight would take three times as long.
        return tf.cond(
            self._proximal(self.iterations // self.steps_per_epoch),
            lambda: _soft(trial, threshold),
            lambda: _orthant(x, trial, threshold),
        )

    def _half_space(self, sums, rate) -> tuple[tf.Tensor, tf.Tensor]:
        squares, product = sums.before()
        norm = tf.sqrt(squares)
        there = norm > 0
        share = tf.where(there, self.regularization * rate / norm, tf.zeros_like(norm))
        inner = squares - product - self.regularization * rate * norm
        # Not "inner >= …": what is not a number shall show.
        gone = tf.logical_or(tf.logical_not(there), inner < self.epsilon * squares)
        gone = tf.logical_and(gone, tf.equal(squares, squares))
        return tf.where(gone, tf.zeros_like(norm), tf.ones_like(norm)), share

    def get_config(self):
        return {**super().get_config(), "steps_per_epoch": self.steps_per_epoch}


@keras.utils.register_keras_serializable(package="l3prune")
class HSPG(_Staged):
    """Half-space stochastic projected gradient: ProxSG first, then half-space steps for ever.

    Parameters
    ----------
    learning_rate, groups, regularization, direction
        See `ProxSG`.
    epsilon : float
        In [0, 1): the larger, the sooner groups become zero.
    prox_epochs : int
        How long ProxSG's stage is.
    steps_per_epoch : int
        What an epoch is; 1 has `prox_epochs` count steps.

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> for epsilon in (0.97, 0.99):
    ...     x = tf.Variable([3.0, 4.0])
    ...     optimizer = HSPG(0.1, [np.array([0, 0])], 1.0, epsilon=epsilon)
    ...     _ = optimizer.apply_gradients([(tf.zeros(2), x)])
    ...     print(x.numpy())
    [2.94 3.92]
    [0. 0.]
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        groups: Sequence[Any] | None = None,
        regularization: float = 1e-3,
        direction: str = "sgd",
        epsilon: float = 0.0,
        prox_epochs: int = 0,
        steps_per_epoch: int = 1,
        name: str = "HSPG",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate,
            groups,
            regularization,
            direction,
            epsilon=epsilon,
            steps_per_epoch=steps_per_epoch,
            name=name,
            **kwargs,
        )
        check_whole("prox_epochs", prox_epochs, 0)
        if groups is None:
            raise ParameterError("HSPG needs groups; take OBProxSG for single weights")
        self.prox_epochs = int(prox_epochs)

    def _proximal(self, epoch):
        return epoch < self.prox_epochs

    def get_config(self):
        """See Keras."""
        own = {"epsilon": self.epsilon, "prox_epochs": self.prox_epochs}
        return {**super().get_config(), **own}


@keras.utils.register_keras_serializable(package="l3prune")
class OBProxSG(_Staged):
    """Orthant-based ProxSG, for lambda times the l1 norm: both kinds of steps in turns.

    A step within orthants is HSPG's half-space step of groups of one, epsilon being zero.

    Parameters
    ----------
    learning_rate, regularization, direction
        See `ProxSG`.
    prox_epochs, orthant_epochs : int
        How long each stage is; 0 orthant epochs: never; None: the first stage is followed by
        orthant steps for ever, which its authors call OBProxSG+.
    steps_per_epoch : int
        What an epoch is; 1 has both count steps.

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> x = tf.Variable([1.0, -0.05, 0.0])
    >>> optimizer = OBProxSG(0.1, 0.1, prox_epochs=0, orthant_epochs=None)
    >>> _ = optimizer.apply_gradients([(tf.constant([2.0, -1.0, -5.0]), x)])
    >>> x.numpy()
    array([0.79, 0.  , 0.  ], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        regularization: float = 1e-4,
        direction: str = "sgd",
        prox_epochs: int = 5,
        orthant_epochs: int | None = 5,
        steps_per_epoch: int = 1,
        name: str = "OBProxSG",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate,
            None,
            regularization,
            direction,
            epsilon=0.0,
            steps_per_epoch=steps_per_epoch,
            name=name,
            **kwargs,
        )
        check_whole("prox_epochs", prox_epochs, 0)
        if orthant_epochs is not None:
            check_whole("orthant_epochs", orthant_epochs, 0 if prox_epochs else 1)
        self.prox_epochs = int(prox_epochs)
        self.orthant_epochs = orthant_epochs

    def _proximal(self, epoch):
        if self.orthant_epochs is None:
            return epoch < self.prox_epochs
        return epoch % (self.prox_epochs + self.orthant_epochs) < self.prox_epochs

    def get_config(self):
        """See Keras."""
        config = super().get_config()
        del config["groups"]
        own = {"prox_epochs": self.prox_epochs, "orthant_epochs": self.orthant_epochs}
        return {**config, **own}


class _Sums:
    """Sums over the groups of several variables: first within each variable, then over them."""

    def __init__(self, groups, values, moves) -> None:
        self.groups, self.values, self.moves = groups, values, moves
        numbers = [each.ravel() for each in groups if each is not None]
        together = np.concatenate([*numbers, np.zeros(0, np.int64)])
        #: One more than there are, for what is of none.
        self.count = int(together.max(initial=-1)) + 2
        together = np.where(together < 0, self.count - 1, together).astype(np.int32)
        self.together = tf.constant(together)
        self.sizes = [each.size for each in numbers]

    def trial(self) -> tf.Tensor:
        """Squared norms after the step."""
        return self._total(lambda x, move: tf.square(x - move))

    def before(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Squared norms before the step, and products with it."""
        return self._total(lambda x, _: tf.square(x)), self._total(lambda x, move: x * move)

    def _total(self, function) -> tf.Tensor:
        found = []
        for numbers, x, move in zip(self.groups, self.values, self.moves, strict=True):
            if numbers is not None:
                pairs = enumerate(zip(numbers.shape, x.shape, strict=True))
                axes = [axis for axis, (own, size) in pairs if own != size]
                found.append(tf.reshape(tf.reduce_sum(function(x, move), axes), [-1]))
        if not found:
            return tf.zeros(self.count, self.values[0].dtype)
        return tf.math.unsorted_segment_sum(tf.concat(found, 0), self.together, self.count)

    def spread(self, values: tf.Tensor, neutral: float) -> list[tf.Tensor | None]:
        """The value of each group at its places in each variable; the neutral one for no group."""
        values = tf.concat([values[:-1], tf.fill([1], tf.cast(neutral, values.dtype))], 0)
        parts = iter(tf.split(tf.gather(values, self.together), self.sizes) if self.sizes else ())
        return [
            None if numbers is None else tf.reshape(next(parts), numbers.shape)
            for numbers in self.groups
        ]


def _array(numbers: Any) -> np.ndarray | None:
    return None if numbers is None else np.asarray(numbers, np.int64)


def _moved(x: tf.Tensor, move: tf.Tensor, keep: tf.Tensor, shrink: tf.Tensor) -> tf.Tensor:
    # Zeros are +0, whatever the sign and the size of what they are made of.
    return tf.math.multiply_no_nan(x * (1 - shrink) - move, keep)


def _soft(trial: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Each weight nearer to zero by the threshold, as far as zero."""
    return trial - tf.clip_by_value(trial, -threshold, threshold)


def _orthant(x: tf.Tensor, trial: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Nearer to zero by the threshold as x is; zero if that changes the sign, or x is zero."""
    sign = tf.sign(x)
    trial -= threshold * sign
    # Not "> 0": what is not a number shall show.
    return tf.where(trial * sign <= 0, tf.zeros_like(trial), trial)
