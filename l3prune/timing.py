"""The time that networks take on this machine, measured in turns."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from l3prune import surgery
from l3prune.channels import check_functional
from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.networks import inference
from l3prune.sparse import SparseModel

#: Calls that a network makes in its turn.
CALLS = 5

#: Seconds before a turn where two engines take turns: threads of the last wait busily for a while.
_PAUSE = 0.06


def latency(
    networks: Mapping[str, keras.Model | SparseModel],
    *,
    rounds: int = 20,
    batch_size: int = 1,
    quiet: bool = True,
) -> dict[str, np.ndarray]:
    """Milliseconds that networks take for one input.

    In every round each network makes `CALLS` calls, so that a change of the machine's speed meets
    all alike. A waveform front end is left out; what is timed is the part behind it, which takes
    log-mels. Masks are left out too and their zeros stay, which is how a masked network is used.

    Parameters
    ----------
    networks : dict of str to keras.Model or SparseModel
        Functional, each with one input of known sizes. A Keras network is computed by TensorFlow,
        a `SparseModel` by the sparse engine.
    rounds : int
        Besides a first one, which compiles and does not count.
    batch_size : int
        Inputs a call, noise in [-1, 1]; times are divided by it.
    quiet : bool
        No progress bar.

    Returns
    -------
    milliseconds : dict of str to np.ndarray, (rounds,) float64
        Means over the calls of a turn. Compare medians; the least of them is of the round in which
        the machine had least else to do.

    Raises
    ------
    ParameterError
        Rounds or a batch that are no positive whole numbers; a network that is not functional, or
        has several inputs, or one of unknown sizes.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> latency({"tiny": create_network("sea64", filters=[1] * 8)}, rounds=2)["tiny"].shape
    (2,)
    """
    check_whole("rounds", rounds, 1)
    check_whole("batch_size", batch_size, 1)
    rng = np.random.default_rng(0)
    calls: dict[str, Callable[[], np.ndarray]] = {}
    pause = 0.0
    for name, network in networks.items():
        if isinstance(network, SparseModel):
            pause = _PAUSE
            program = dataclasses.replace(network.program, front_end=None)
            behind = SparseModel(program, threads=network.threads, lanes=network.lanes)
            calls[name] = functools.partial(behind, _noise(rng, batch_size, program.shape))
            continue
        check_sizes(name, network)
        if len(network.inputs) > 1:
            raise ParameterError(
                f"network {name} has {len(network.inputs)} inputs; only networks with one can be "
                "timed, leave the timing out"
            )
        timed = surgery.behind_front_end(surgery.strip_masks(network))
        calls[name] = functools.partial(
            inference(timed), _noise(rng, batch_size, timed.input_shape[1:])
        )
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(rounds + 1), "timing", unit="round", disable=quiet or None):
        # To and fro, so that none is always behind the same other.
        for name, call in list(calls.items())[:: -1 if number % 2 else 1]:
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            if number:
                seconds[name].append((time.perf_counter() - start) / CALLS)
    return {name: 1000 * np.array(each) / batch_size for name, each in seconds.items()}


def _noise(rng: np.random.Generator, count: int, shape: Sequence[int]) -> np.ndarray:
    return rng.uniform(-1, 1, (count, *shape)).astype(np.float32)


def check_sizes(name: str, network: keras.Model) -> None:
    """Refuse a network that is not functional, or whose input may have several sizes.

    Examples
    --------
    >>> inputs = keras.Input((None, 8))
    >>> check_sizes("mine", keras.Model(inputs, keras.layers.Dense(2)(inputs)))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: network mine has an input of shape (None, None, 8); ...
    """
    check_functional(network)
    for tensor in network.inputs:
        if None in tensor.shape[1:]:
            raise ParameterError(
                f"network {name} has an input of shape {tuple(tensor.shape)}; what it costs "
                "depends on all sizes but the first: give them, as in keras.Input((64, 50, 1))"
            )
