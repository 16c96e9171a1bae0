"""A network that trains more than it shows, so that its checkpoints hold networks to be used."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tf_keras as keras


class Disguised(keras.Model):
    """A functional network that trains more than it shows: a student and what is beside it.

    Whoever reads its layers or weights sees those that `show` was given, so that checkpoints hold
    networks to be used. All other variables of it are kept beside them in the checkpoint; the
    trainable variables are of both, without those of layers that are not trainable.

    Examples
    --------
    >>> inputs = keras.Input((2,))
    >>> first, second = keras.layers.Dense(3), keras.layers.Dense(4)
    >>> network = Disguised(inputs, second(first(inputs)))
    >>> network.show([first])
    >>> len(network.layers), len(network.weights), len(network.trainable_weights)
    (1, 2, 4)
    """

    def show(self, layers: list[keras.layers.Layer], still: Collection[int] = ()) -> None:
        """Show these layers alone; variables whose `id` is in `still` are not for the optimizer."""
        # Past Keras's own attributes, which would make the layers parts of the network once more.
        object.__setattr__(self, "_shown", layers)
        object.__setattr__(self, "_still", frozenset(still))

    @property
    def beside(self) -> list[Any]:
        """Its variables that are in none of the layers that it shows."""
        return variables_beside(self)

    @property
    def layers(self):
        return self.__dict__.get("_shown") or super().layers

    @property
    def weights(self):
        return [weight for layer in self.layers for weight in layer.weights]

    @property
    def trainable_weights(self):
        still = self.__dict__.get("_still", frozenset()) | {
            id(weight) for layer in self.layers if not layer.trainable for weight in layer.weights
        }
        return [weight for weight in super().trainable_weights if id(weight) not in still]


def variables_beside(network: keras.Model) -> list[Any]:
    """The variables that a network trains or keeps and that are in none of its layers.

    Examples
    --------
    >>> network = keras.Sequential([keras.layers.Dense(1)])
    >>> network.build((None, 2))
    >>> variables_beside(network)
    []
    """
    own = {id(weight) for layer in network.layers for weight in layer.weights}
    every = [*network.trainable_variables, *network.non_trainable_variables]
    return [variable for variable in every if id(variable) not in own]
