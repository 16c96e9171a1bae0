"""L3-Net audio networks (Cramer et al., ICASSP 2019) and the SEA students (Kumari et al., 2021).

Eight 3x3 convolutions in four blocks, each Conv -> BatchNorm -> ReLU, max-pooled by 2 after the
first three blocks. One table row a network, one builder for all; students of less depth have some
of the eight layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from l3prune.audio import KAPRE_0_1, FrontEnd
from l3prune.errors import ParameterError
from l3prune.layers import LogMelSpectrogram
from l3prune.networks import create_network, network, network_config


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
MAX_FILTERS = 4096

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
    include_layers: Sequence[int] | None = None,
    from_convlayer: int | None = None,
    weight_decay: float = 1e-5,
) -> keras.Model:
    """Build an L3 audio network, or a student with some of its layers.

    Without layer 2 there is no pooling behind block 1, without layer 4 none behind block 2; the
    one behind block 3 and the final one are always there, as in EdgeL3. The final pooling takes
    the whole map, so the embedding has one value for each filter of the last layer.

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
    filters : sequence of int, or None
        Filters of each layer that is there, in their order: of conv 1 … conv 8, if all are. None
        takes the row's.
    include_layers : sequence of int or bool, or None
        Numbers of the layers that are there, rising, of 1 … 8; or 8 zeros and ones, as EdgeL3's
        --include_layers. None includes all.
    from_convlayer : {5, 6, 7, 8} or None
        Take the embedding from this layer's raw output instead of the last one's, with the final
        pooling of the whole network: 512 values of mel256's layers 8 and 7, 1536 of 6 and 5. Later
        layers are not built.
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
    numbers = layer_numbers(include_layers, from_convlayer)
    if filters is None:
        filters = [spec.filters[number - 1] for number in numbers]
    if from_convlayer is not None and embedding_point == "activated":
        raise ParameterError(
            f"from_convlayer={from_convlayer} takes the layer's raw output: leave out "
            "embedding_point='activated', or use include_layers"
        )
    point = _point(spec, embedding_point, from_convlayer)
    filters = tuple(filters)
    check_arguments(filters, weight_decay, point, len(numbers))

    constants = dataclasses.replace(spec.front_end, form=front_end)
    bands, frames = constants.shape
    inputs, maps = audio_input(constants, input)
    maps = audio_layers(
        maps,
        dict(zip(numbers, filters, strict=True)),
        activated=point == "activated",
        truncated=from_convlayer is not None,
        input_batch_norm=input_batch_norm,
        weight_decay=weight_decay,
    )
    rows, columns = maps.shape[1:3]
    whole = (bands // 8, frames // 8) if from_convlayer is not None else (rows, columns)
    pools = {
        -(-rows // pool[0]) * -(-columns // pool[1]) * filters[-1]: pool
        for pool in (whole, spec.original_pool)
        if pool is not None
    }
    size = next(iter(pools)) if embedding_size is None else embedding_size
    if size not in pools:
        raise ParameterError(
            f"embedding_size={size}; {spec_name} gives {' or '.join(map(str, sorted(pools)))}"
        )
    return keras.Model(inputs, pooled_embedding(maps, pools[size]), name=spec_name)


def audio_input(constants: FrontEnd, input: str):
    """The input of an audio network and its spectrograms, which are the input itself for "log_mel".

    Examples
    --------
    >>> inputs, maps = audio_input(SPECS["sea64"].front_end, "waveform")
    >>> inputs.shape, maps.shape
    (TensorShape([None, 1, 8000]), TensorShape([None, 64, 50, 1]))
    """
    if input == "waveform":
        inputs = keras.Input((1, constants.sample_rate), name="waveform")
        return inputs, LogMelSpectrogram(**dataclasses.asdict(constants), name="log_mel")(inputs)
    if input == "log_mel":
        inputs = keras.Input((*constants.shape, 1), name="log_mel")
        return inputs, inputs
    raise ParameterError(f"input={input!r}; allowed: 'waveform', 'log_mel'")


def audio_layers(
    maps,
    filters: Mapping[int, int],
    *,
    activated: bool,
    input_batch_norm: bool,
    weight_decay: float,
    truncated: bool = False,
):
    """The layers of an audio network behind its front end, as far as the last maps.

    Parameters
    ----------
    maps : tensor, (batch, bands, frames, 1)
    filters : mapping of int to int
        The filters of each layer that is there, by its number, rising.
    activated : bool
        Behind the last convolution are its BatchNorm and ReLU.
    input_batch_norm, weight_decay
        See `build`.
    truncated : bool
        Of a deeper network: block 3 is not pooled behind a last layer in it.

    Returns
    -------
    maps : tensor, (batch, rows, columns, filters)

    Examples
    --------
    >>> spectrogram = keras.Input((64, 50, 1))
    >>> audio_layers(
    ...     spectrogram, {1: 4, 2: 8}, activated=True, input_batch_norm=True, weight_decay=0.0
    ... ).shape
    TensorShape([None, 16, 12, 8])
    """
    last = max(filters)
    if input_batch_norm:
        maps = keras.layers.BatchNormalization(name="batch_normalization_1")(maps)
    for number in range(1, 9):
        if number in filters:
            maps = convolution(filters[number], weight_decay, CONV_NAMES[number - 1])(maps)
            if number != last or activated:
                norm = keras.layers.BatchNormalization(name=f"batch_normalization_{number + 1}")
                maps = keras.layers.ReLU(name=f"relu_{number}")(norm(maps))
        if number == last and truncated:
            break
        if number == 6 or (number in (2, 4) and number in filters):
            maps = keras.layers.MaxPooling2D(2, name=f"max_pooling_{number // 2}")(maps)
    return maps


def layer_numbers(
    include_layers: Sequence[int] | None = None, from_convlayer: int | None = None
) -> tuple[int, ...]:
    """The layers that `build` builds, of 1 … 8; see there.

    Examples
    --------
    >>> layer_numbers([1, 0, 1, 1, 1, 1, 1, 0])
    (1, 3, 4, 5, 6, 7)
    >>> layer_numbers([1, 3, 4, 5, 6, 7], from_convlayer=5)
    (1, 3, 4, 5)
    """
    given = list(range(1, 9)) if include_layers is None else list(include_layers)
    if len(given) == 8 and all(each in (0, 1) for each in given):
        given = [number for number, each in enumerate(given, start=1) if each]
    if (
        not given
        or given != sorted(set(given))
        or not all(
            isinstance(each, int | np.integer) and not isinstance(each, bool) and 1 <= each <= 8
            for each in given
        )
    ):
        raise ParameterError(
            f"include_layers={include_layers}: give 8 zeros and ones, not all of them zero, or "
            "rising layer numbers of 1 … 8"
        )
    if from_convlayer is not None:
        allowed = [number for number in given if number >= 5]
        if isinstance(from_convlayer, bool) or from_convlayer not in allowed:
            raise ParameterError(
                f"from_convlayer={from_convlayer!r}; allowed: the layers of 5, 6, 7, 8 that are "
                f"included ({', '.join(map(str, allowed)) or 'none'})"
            )
        given = [number for number in given if number <= from_convlayer]
    return tuple(int(number) for number in given)


def _point(spec: L3Spec, embedding_point: str | None, from_convlayer: int | None) -> str:
    if embedding_point is not None:
        return embedding_point
    return spec.embedding_point if from_convlayer is None else "raw"


def depth_student(
    source: keras.Model,
    include_layers: Sequence[int] | None = None,
    from_convlayer: int | None = None,
) -> keras.Model:
    """A network with some of the layers of another, and its weights where their shapes agree.

    Layers up to the first one that is left out have all their weights, and compute what they do in
    `source`: with `from_convlayer` alone, that is the whole student, and nothing is left to train.
    A layer behind a gap that takes another number of channels has fresh weights.

    Parameters
    ----------
    source : keras.Model
        An L3 audio network. Masks are not taken over: prune the student.
    include_layers, from_convlayer
        See `build`; of the layers that `source` has.

    Returns
    -------
    student : keras.Model
        Its embedding has the default size.

    Raises
    ------
    ParameterError
        As `build`; or `source` lacks one of the layers, or has none of them.

    Examples
    --------
    >>> student = depth_student(create_network("mel256"), from_convlayer=6)
    >>> student.output_shape
    (None, 1536)
    """
    front_end(source)  # refuses networks of images
    config = network_config(source)
    has = {layer.name: layer for layer in source.layers}
    had = [number for number, name in enumerate(CONV_NAMES, start=1) if name in has]
    numbers = layer_numbers(had if include_layers is None else include_layers, from_convlayer)
    missing = [number for number in numbers if number not in had]
    if missing:
        raise ParameterError(
            f"include_layers={include_layers}: the network has no layer "
            f"{', '.join(map(str, missing))}; it has {', '.join(map(str, had))}"
        )
    arguments = {
        name: value
        for name, value in config.arguments.items()
        if name not in ("embedding_size", "include_layers", "from_convlayer")
    }
    if from_convlayer is not None:
        arguments.pop("embedding_point", None)
        arguments["from_convlayer"] = int(from_convlayer)
    elif config.arguments.get("from_convlayer") is not None:
        arguments["embedding_point"] = "raw"
    student = create_network(
        config.name,
        **{
            **arguments,
            "filters": [has[CONV_NAMES[number - 1]].filters for number in numbers],
            "include_layers": list(numbers),
        },
    )
    take_weights(student, source)
    return student


def take_weights(
    student: keras.Model, source: keras.Model, rename: Callable[[str], str] = str
) -> list[str]:
    """Copy weights, in place, to the layers of a student from those of the same name and shape.

    `rename` gives what a layer of `source` is called in the student.

    Returns
    -------
    fresh : list of str
        Layers that `source` has not, or has in another shape; their weights are as they were.

    Examples
    --------
    >>> student = create_network("sea64", include_layers=[1, 2, 4, 5, 6, 7, 8])
    >>> take_weights(student, create_network("sea64"))
    ['conv_4']
    """
    sources = {rename(layer.name): layer.get_weights() for layer in source.layers}
    fresh = []
    for layer in student.layers:
        # Without a mask, which comes last and takes part in no product here.
        given = sources.get(layer.name, [])[: len(layer.weights)]
        if [array.shape for array in given] != [tuple(weight.shape) for weight in layer.weights]:
            fresh.append(layer.name)
        elif given:
            layer.set_weights(given)
    return fresh


def check_arguments(
    filters: Sequence[int],
    weight_decay: float,
    point: str = "activated",
    layers: int = 8,
    name: str = "filters",
) -> None:
    """Refuse what no network of so many convolutions takes; see `build`.

    `name` is what the builder calls the filters.

    Examples
    --------
    >>> check_arguments([0] * 8, 1e-5, "raw")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: filters=[0, 0, 0, 0, 0, 0, 0, 0]: give 8 whole numbers in ...
    """
    if len(filters) != layers or not all(
        isinstance(count, int | np.integer) and 1 <= count <= MAX_FILTERS for count in filters
    ):
        raise ParameterError(
            f"{name}={filters}: give {layers} whole numbers in 1 … {MAX_FILTERS}, one for each "
            "layer"
        )
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
        kernel_regularizer=regularizer(weight_decay),
        name=name,
    )


def regularizer(weight_decay: float) -> keras.regularizers.Regularizer | None:
    """L2 of a kernel; None for 0.

    Examples
    --------
    >>> regularizer(0) is None
    True
    """
    return keras.regularizers.l2(weight_decay) if weight_decay else None


def pooled_embedding(maps, pool: tuple[int, int], rename: Callable[[str], str] = str):
    """The end of a network: max-pooled maps (batch, rows, columns, filters) as (batch, size).

    `rename` gives the layers other names.

    Examples
    --------
    >>> pooled_embedding(keras.Input((32, 24, 8)), (8, 8)).shape
    TensorShape([None, 96])
    """
    pooling = keras.layers.MaxPooling2D(pool, padding="same", name=rename("embedding_pooling"))
    # Mixed precision computes in float16; an embedding is float32 for its readers all the same.
    return keras.layers.Flatten(dtype="float32", name=rename("embedding"))(pooling(maps))


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
    given = (config.arguments.get(name) for name in ("embedding_point", "from_convlayer"))
    return _point(SPECS[config.name], *given)
