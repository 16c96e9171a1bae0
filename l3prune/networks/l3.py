"""L3-Net audio networks (Cramer et al., ICASSP 2019) and the SEA students (Kumari et al., 2021).

Eight 3x3 convolutions in four blocks, each Conv -> BatchNorm -> ReLU, max-pooled by 2 after the
first three blocks. One table row a network, one builder for all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from l3prune.audio import FrontEnd
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
_SEA = FrontEnd(8000, 1024, 160, 64, "same")

SPECS = {
    "mel256": L3Spec(FrontEnd(48000, 2048, 242, 256, "same"), _WIDE, "raw", (8, 8)),
    "mel128": L3Spec(FrontEnd(48000, 2048, 242, 128, "same"), _WIDE, "raw", (4, 8)),
    "linear": L3Spec(FrontEnd(48000, 512, 242, None, "valid"), _WIDE, "raw", (8, 8)),
    "sea512": L3Spec(_SEA, _WIDE, "activated", None),
    "sea256": L3Spec(_SEA, (32, 32, 64, 64, 128, 128, 256, 256), "activated", None),
    "sea128": L3Spec(_SEA, (32, 32, 64, 64, 128, 128, 128, 128), "activated", None),
    "sea64": L3Spec(_SEA, (32, 32, 64, 64, 128, 128, 64, 64), "activated", None),
}


def build(
    spec_name: str,
    *,
    input: str = "waveform",
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
    if len(filters) != 8 or not all(
        isinstance(count, int | np.integer) and 1 <= count <= _MAX_FILTERS for count in filters
    ):
        raise ParameterError(f"filters={filters}: give 8 whole numbers in 1 … {_MAX_FILTERS}")
    if not 0 <= weight_decay < float("inf"):
        raise ParameterError(f"weight_decay={weight_decay} is not a number ≥ 0")
    point = spec.embedding_point if embedding_point is None else embedding_point
    if point not in ("raw", "activated"):
        raise ParameterError(f"embedding_point={point!r}; allowed: 'raw', 'activated'")

    bands, frames = spec.front_end.shape
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
        inputs = keras.Input((1, spec.front_end.sample_rate), name="waveform")
        front_end = spec.front_end
        maps = LogMelSpectrogram(
            front_end.sample_rate,
            front_end.n_dft,
            front_end.hop_length,
            front_end.n_mels,
            front_end.padding,
            name="log_mel",
        )(inputs)
    elif input == "log_mel":
        inputs = maps = keras.Input((bands, frames, 1), name="log_mel")
    else:
        raise ParameterError(f"input={input!r}; allowed: 'waveform', 'log_mel'")

    maps = keras.layers.BatchNormalization(name="batch_normalization_1")(maps)
    for number, count in enumerate(filters, start=1):
        maps = keras.layers.Conv2D(
            count,
            3,
            padding="same",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.l2(weight_decay) if weight_decay else None,
            name=CONV_NAMES[number - 1],
        )(maps)
        if number == 8 and point == "raw":
            break
        maps = keras.layers.BatchNormalization(name=f"batch_normalization_{number + 1}")(maps)
        maps = keras.layers.ReLU(name=f"relu_{number}")(maps)
        if number in (2, 4, 6):
            maps = keras.layers.MaxPooling2D(2, name=f"max_pooling_{number // 2}")(maps)
    maps = keras.layers.MaxPooling2D(pools[size], padding="same", name="embedding_pooling")(maps)
    # Mixed precision computes in float16; an embedding is float32 for its readers all the same.
    embedding = keras.layers.Flatten(dtype="float32", name="embedding")(maps)
    return keras.Model(inputs, embedding, name=spec_name)


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
    name = network_config(net).name
    if name not in SPECS:
        raise ParameterError(f"network {name!r} is not of the L3 family: {', '.join(SPECS)}")
    return SPECS[name].front_end


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
