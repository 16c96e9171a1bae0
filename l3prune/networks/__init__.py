"""Networks by name: one module per family, each function registered with `@network`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from l3prune import extensions
from l3prune.errors import ParameterError
from l3prune.labels import Labels

_BUILDERS: dict[str, Callable[..., Any]] = {}

#: Network -> builder arguments that say how wide it is; of builders that do not take `filters`.
_WIDTHS: dict[str, Callable[[Any], dict[str, Any]]] = {}

#: Network -> from its arguments, the filters and units of all its layers that have such, in order.
_CLAIMED: dict[str, Callable[[dict[str, Any]], tuple[int, ...]]] = {}


@dataclass(frozen=True)
class NetworkConfig:
    """What rebuilds a network: its registered name and the arguments of its builder.

    Attributes
    ----------
    name : str
        One of `list_networks()`.
    arguments : dict
        Keyword arguments for `create_network`, all JSON values.
    labels : tuple of str
        Names of the classes that its outputs stand for, in their order; empty where they stand
        for none, or it is not known. See `set_labels`.

    Examples
    --------
    >>> config = NetworkConfig("sea64", {"weight_decay": 0.0})
    >>> create_network(config.name, **config.arguments).name
    'sea64'
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = field(default=(), repr=False)  # there may be hundreds


def network(
    name: str,
    widths: Callable[[Any], dict[str, Any]] | None = None,
    claimed: Callable[[dict[str, Any]], tuple[int, ...]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a builder, keyword arguments -> keras.Model, under `name` (a decorator).

    Parameters
    ----------
    name : str
    widths : callable, keras.Model -> dict, or None
        The arguments with which the builder makes a network as wide as a given one, which surgery
        made narrower. None: `filters`, of all convolutions in their order.
    claimed : callable, arguments -> tuple of int, or None
        The filters of convolutions and units of dense layers, in their order, of the network that
        the builder makes with these arguments: a weight file must hold as many before anything is
        built from what it says. None: of families that `detection` knows by itself; weight files of
        others cannot be loaded without.

    Raises
    ------
    ParameterError
        Another module has a network of this name.

    Examples
    --------
    >>> @network("nothing")
    ... def build(**arguments):
    ...     return keras.Sequential(**arguments)
    >>> "nothing" in list_networks()
    True
    >>> del _BUILDERS["nothing"]
    """

    def register(builder: Callable[..., Any]) -> Callable[..., Any]:
        before = _BUILDERS.get(name, builder)
        if before.__module__ != builder.__module__:
            raise ParameterError(
                f"network {name!r} of {builder.__module__} is there already, in "
                f"{before.__module__}; give it another name"
            )
        _BUILDERS[name] = builder
        if widths is not None:
            _WIDTHS[name] = widths
        if claimed is not None:
            _CLAIMED[name] = claimed
        return builder

    return register


def list_networks() -> list[str]:
    """Names that `create_network` knows, those that other packages add among them.

    Examples
    --------
    >>> "mel256" in list_networks()
    True
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return list(dict.fromkeys([*_BUILDERS, *extensions.names(extensions.NETWORKS)]))


def _builder(name: str) -> Callable[..., Any] | None:
    """What builds a network; None for an unknown name."""
    if name in list_networks() and name not in _BUILDERS:
        extensions.load(extensions.NETWORKS, name)
        if name not in _BUILDERS:
            raise ParameterError(
                f"network {extensions.told(extensions.NETWORKS, name)} registers nothing of this "
                f"name; decorate its builder with @network({name!r})"
            )
    return _BUILDERS.get(name)


def create_network(name: str, **arguments: Any):
    """Build a network with fresh weights.

    Parameters
    ----------
    name : str
        One of `list_networks()`.
    **arguments
        The builder's own; for the L3 family see `l3prune.networks.l3.build`.

    Returns
    -------
    network : keras.Model
        Functional. Its `NetworkConfig` is what `network_config` gives.

    Raises
    ------
    ParameterError
        Unknown name or argument, or a value outside its range.

    Examples
    --------
    >>> create_network("sea64").output_shape
    (None, 64)
    """
    builder = _builder(name)
    if builder is None:
        raise ParameterError(f"network {name!r} is unknown; known: {', '.join(list_networks())}")
    try:
        built = builder(**arguments)
    except ParameterError:
        raise
    except (TypeError, ValueError) as error:
        raise ParameterError(f"network {name}: {_first_line(error)}") from error
    return attach_config(built, NetworkConfig(name, arguments))


def _first_line(error: Exception) -> str:
    if "Negative dimension" in str(error):  # Keras's, of several lines about TensorFlow
        return "its layers leave nothing of an input this small; give a longer one, or more bands"
    return str(error).split("\n", 1)[0]


def takes(name: str, argument: str) -> bool:
    """Whether the builder of a network has an argument of this name.

    Examples
    --------
    >>> takes("dcase2021", "classes"), takes("sea64", "classes")
    (True, False)
    """
    builder = _builder(name)
    return builder is not None and argument in inspect.signature(builder).parameters


def attach_config(built, config: NetworkConfig):
    """Make `network_config(built)` answer `config`; gives `built` back.

    Examples
    --------
    >>> built = attach_config(create_network("sea64"), NetworkConfig("another"))
    >>> network_config(built).name
    'another'
    """
    built.l3prune_config = config
    return built


def network_config(built) -> NetworkConfig:
    """The `NetworkConfig` that a network was built from.

    Raises
    ------
    ParameterError
        The model was not made by l3prune.

    Examples
    --------
    >>> network_config(create_network("sea64", input="log_mel")).arguments
    {'input': 'log_mel'}
    """
    config = getattr(built, "l3prune_config", None)
    if config is None:
        raise ParameterError(
            f"model {getattr(built, 'name', built)!r} was not made by create_network or "
            "load_network; use one of these"
        )
    return config


def set_labels(built, names: Sequence[str]):
    """Name the classes that a network's outputs stand for; gives `built` back.

    Its weight file keeps the names, and so does surgery; `network_config(built).labels` has them.

    Raises
    ------
    ParameterError
        No output has as many values as there are names, or a name occurs twice.

    Examples
    --------
    >>> named = set_labels(create_network("sea64"), [f"sound {number}" for number in range(64)])
    >>> network_config(named).labels[:2]
    ('sound 0', 'sound 1')
    """
    labels = Labels(tuple(names))
    sizes = [output.shape[-1] for output in built.outputs]
    if len(labels.names) not in sizes:
        raise ParameterError(
            f"{len(labels.names)} labels for network {built.name}, whose outputs have "
            f"{' and '.join(map(str, sizes))} values; give one for each value"
        )
    return attach_config(built, replace(network_config(built), labels=labels.names))


def narrowed_config(config: NetworkConfig, built) -> NetworkConfig:
    """What rebuilds a network that has lost filters since it was built from `config`.

    Examples
    --------
    >>> narrow = create_network("sea64", filters=[4] * 8)
    >>> narrowed_config(NetworkConfig("sea64"), narrow).arguments
    {'filters': [4, 4, 4, 4, 4, 4, 4, 4]}
    """
    widths = _WIDTHS.get(config.name, _filters)
    arguments = {**config.arguments, **widths(built)}
    if "embedding_size" in arguments:
        arguments["embedding_size"] = built.output_shape[1]
    return replace(config, arguments=arguments)


def claimed_widths(config: NetworkConfig) -> tuple[int, ...] | None:
    """Filters and units of all layers that have such, in order; None if the network tells none.

    Examples
    --------
    >>> claimed_widths(NetworkConfig("cnn14", {"classes": 10}))[-3:]
    (2048, 2048, 10)
    """
    _builder(config.name)  # imports it
    claimed = _CLAIMED.get(config.name)
    return None if claimed is None else claimed(config.arguments)


def _filters(built) -> dict[str, Any]:
    return {"filters": [layer.filters for layer in built.layers if hasattr(layer, "filters")]}


def inference(built) -> Callable[..., Any]:
    """A network as a compiled function of batches, in inference mode.

    It is compiled once a network, follows later changes of the weights, and takes batches of any
    size.

    Returns
    -------
    infer : callable, (n, …) float32 -> (n, …) float32
        It takes an array for each of the network's inputs, in their order; of a network of several
        outputs it gives a list.

    Examples
    --------
    >>> import numpy as np
    >>> inference(create_network("sea64"))(np.zeros((2, 1, 8000), np.float32)).shape
    (2, 64)
    """
    import tensorflow as tf

    if not hasattr(built, "l3prune_forward"):
        # A concrete function: TensorFlow warns of many functions made by the same line.
        built.l3prune_forward = tf.function(
            lambda *batch: built(batch if len(batch) > 1 else batch[0], training=False),
            input_signature=[tf.TensorSpec(each.shape, tf.float32) for each in built.inputs],
        ).get_concrete_function()
    forward = built.l3prune_forward

    def infer(*batch):
        made = forward(*(tf.convert_to_tensor(each, tf.float32) for each in batch))
        return [each.numpy() for each in made] if len(built.outputs) > 1 else made.numpy()

    return infer
