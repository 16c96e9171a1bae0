"""L3-Net audio networks (Cramer et al., ICASSP 2019) and the SEA students (Kumari et al., 2021).

Eight 3x3 convolutions in four blocks, each Conv -> BatchNorm -> ReLU, max-pooled by 2 after the
first three blocks. One table row a network, one builder for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from l3prune.audio import KAPRE_0_1, FrontEnd
from l3prune.errors import ParameterError
from l3prune.layers import LogMelSpectrogram
from l3prune.networks import network, network_config


@dataclass(frozen=True)
class L3Spec:
    """What distinguishes one L3 audio network from another.

    Attributes
    ----------
    front_end : FrontEnd
    filters : tuple of 8 int
    embedding_point : {"raw", "activated"}
        Where the embedding is taken: conv 8's output itself, or after its BatchNorm and ReLU.
    original_pool : tuple of 2 int, or None
        Pool of the long embedding (6144 values of mel256); None where there is none.

    Examples
    --------
    >>> SPECS["sea64"].filters[-1]
    64
    """

    front_end: FrontEnd
    filters: tuple[int, ...]
    embedding_point: str
    original_pool: tuple[int, int] | None


#: A layer of 4096 x 4096 filters alone has 150 million weights; more is a mistake.
_MAX_FILTERS = 4096

_WIDE = (64, 64, 128, 128, 256, 256, 512, 512)
_SEA = FrontEnd(8000, 1024, 160, 64)

SPECS = {
    "mel256": L3Spec(FrontEnd(48000, 2048, 242, 256), _WIDE, "raw", (8, 8)),
    "mel128": L3Spec(FrontEnd(48000, 2048, 242, 128), _WIDE, "raw", (4, 8)),
    "linear": L3Spec(FrontEnd(48000, 512, 242, None), _WIDE, "raw", (8, 8)),
    "sea512": L3Spec(_SEA, _WIDE, "activated", None),
    "sea256": L3Spec(_SEA, (32, 32, 64, 64, 128, 128, 256, 256), "activated", None),
    "sea128": L3Spec(_SEA, (32, 32, 64, 64, 128, 128, 128, 128), "activated", None),
    "sea64": L3Spec(_SEA, (32, 32, 64, 64, 128, 128, 64, 64), "activated", None),
}


def build(
    spec_name: str,
    *,
    input: str = "waveform",
    front_end: str = KAPRE_0_1,
    input_batch_norm: bool = True,
    embedding_size: int | None = None,
    embedding_point: str | None = None,
    filters: Sequence[int] | None = None,
    weight_decay: float = 1e-5,
) -> keras.Model:
    """Build an L3 audio network.

    Parameters
    ----------
    spec_name : str
        A row of `SPECS`.
    input : {"waveform", "log_mel"}
        Waveform (batch, 1, sample_rate) in [-1, 1], the front end inside; or the front end's
        output (batch, bands, frames, 1) in dB.
    front_end : str
        One of `audio.FORMS`.
    input_batch_norm : bool
        BatchNorm of the front end's output. L3-Net's own mel128 network has none.
    embedding_size : int or None
        Values of the max-pooled embedding. None pools each map to one value (512 of mel256);
        the OpenL3 networks also have 12 values a map (6144).
    embedding_point : {"raw", "activated"} or None
        None takes the row's. "activated" on mel256 gives the audio half of the L3 network as it
        is trained, all 4,688,066 parameters of it.
    filters : sequence of 8 int, or None
        Filters of conv 1 … conv 8; None takes the row's.
    weight_decay : float
        L2 factor on convolution kernels, not negative.

    Returns
    -------
    network : keras.Model, output (batch, embedding_size) float32

    Raises
    ------
    ParameterError
        A value outside its range; the message tells the range.

    Examples
    --------
    >>> build("mel256", embedding_size=6144).output_shape
    (None, 6144)
    """
    spec = SPECS[spec_name]
    filters = spec.filters if filters is None else tuple(filters)
    point = spec.embedding_point if embedding_point is None else embedding_point
    check_arguments(filters, weight_decay, point)

    constants = dataclasses.replace(spec.front_end, form=front_end)
    bands, frames = constants.shape
    pools = {filters[-1]: (bands // 8, frames // 8)}
    if spec.original_pool is not None:
        rows, columns = spec.original_pool
        pools[-(-(bands // 8) // rows) * -(-(frames // 8) // columns) * filters[-1]] = (
            spec.original_pool
        )
    size = filters[-1] if embedding_size is None else embedding_size
    if size not in pools:
        raise ParameterError(
            f"embedding_size={size}; {spec_name} gives {' or '.join(map(str, sorted(pools)))}"
        )

    if input == "waveform":
        inputs = keras.Input((1, constants.sample_rate), name="waveform")
        maps = LogMelSpectrogram(**dataclasses.asdict(constants), name="log_mel")(inputs)
    elif input == "log_mel":
        inputs = maps = keras.Input((bands, frames, 1), name="log_mel")
    else:
        raise ParameterError(f"input={input!r}; allowed: 'waveform', 'log_mel'")

    if input_batch_norm:
        maps = keras.layers.BatchNormalization(name="batch_normalization_1")(maps)
    for number, count in enumerate(filters, start=1):
        maps = convolution(count, weight_decay, CONV_NAMES[number - 1])(maps)
        if number == 8 and point == "raw":
            break
        maps = keras.layers.BatchNormalization(name=f"batch_normalization_{number + 1}")(maps)
        maps = keras.layers.ReLU(name=f"relu_{number}")(maps)
        if number in (2, 4, 6):
            maps = keras.layers.MaxPooling2D(2, name=f"max_pooling_{number // 2}")(maps)
    return keras.Model(inputs, pooled_embedding(maps, pools[size]), name=spec_name)


def check_arguments(filters: Sequence[int], weight_decay: float, point: str) -> None:
    """Refuse what no network of eight convolutions takes; see `build`.

    Examples
    --------
    >>> check_arguments([0] * 8, 1e-5, "raw")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: filters=[0, 0, 0, 0, 0, 0, 0, 0]: give 8 whole numbers in ...
    """
    if len(filters) != 8 or not all(
        isinstance(count, int | np.integer) and 1 <= count <= _MAX_FILTERS for count in filters
    ):
        raise ParameterError(f"filters={filters}: give 8 whole numbers in 1 … {_MAX_FILTERS}")
    if not 0 <= weight_decay < float("inf"):
        raise ParameterError(f"weight_decay={weight_decay} is not a number ≥ 0")
    if point not in ("raw", "activated"):
        raise ParameterError(f"embedding_point={point!r}; allowed: 'raw', 'activated'")


def convolution(filters: int, weight_decay: float, name: str) -> keras.layers.Conv2D:
    """L3-Net's 3x3 convolution, without its activation.

    Examples
    --------
    >>> convolution(64, 1e-5, "conv_1").filters
    64
    """
    return keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.l2(weight_decay) if weight_decay else None,
        name=name,
    )


def pooled_embedding(maps, pool: tuple[int, int]):
    """The end of a network: max-pooled maps (batch, rows, columns, filters) as (batch, size).

    Examples
    --------
    >>> pooled_embedding(keras.Input((32, 24, 8)), (8, 8)).shape
    TensorShape([None, 96])
    """
    maps = keras.layers.MaxPooling2D(pool, padding="same", name="embedding_pooling")(maps)
    # Mixed precision computes in float16; an embedding is float32 for its readers all the same.
    return keras.layers.Flatten(dtype="float32", name="embedding")(maps)


#: Layer names of conv 1 … conv 8, as in the published networks.
CONV_NAMES = (*(f"conv_{number}" for number in range(1, 8)), "audio_embedding_layer")

for _name in SPECS:
    network(_name)(functools.partial(build, _name))


def front_end(net: keras.Model) -> FrontEnd:
    """The front end whose output an L3 network was built for, inside it or not.

    Raises
    ------
    ParameterError
        The network is not of the L3 family.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> front_end(create_network("sea64")).sample_rate
    8000
    """
    config = network_config(net)
    if config.name not in SPECS:
        raise ParameterError(
            f"network {config.name!r} is no audio network of the L3 family: {', '.join(SPECS)}"
        )
    form = config.arguments.get("front_end", KAPRE_0_1)
    return dataclasses.replace(SPECS[config.name].front_end, form=form)


def embedding_point(net: keras.Model) -> str:
    """Where an L3 network takes its embedding: "raw" or "activated".

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> embedding_point(create_network("mel256"))
    'raw'
    """
    config = network_config(net)
    return config.arguments.get("embedding_point") or SPECS[config.name].embedding_point
