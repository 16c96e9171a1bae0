"""What the sparse engine computes, as plain values: a sequence of steps with their weights.

BatchNorm behind a convolution is folded into it already; a BatchNorm that cannot be (before the
first convolution, whose zero padding comes after it, or behind a non-linearity) is an `Affine`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np

from l3prune.audio import FrontEnd


@dataclass(frozen=True, eq=False)
class Convolution:
    """y = relu(kernel * x + bias), channels last.

    Attributes
    ----------
    name : str
        Of the network's layer.
    kernel : np.ndarray, (kh, kw, in_channels, filters) float32
        Zeros where pruned.
    bias : np.ndarray, (filters,) float32
    strides : (int, int)
        Rows, columns.
    padding : str
        "same" (TensorFlow's: the larger half at the end) or "valid".
    relu : bool

    Examples
    --------
    >>> Convolution("conv", np.ones((3, 3, 1, 2), np.float32), np.zeros(2, np.float32)).padding
    'same'
    """

    name: str
    kernel: np.ndarray
    bias: np.ndarray
    strides: tuple[int, int] = (1, 1)
    padding: str = "same"
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Affine:
    """y = scale * x + offset for each channel, then ReLU if `relu`.

    Attributes
    ----------
    name : str
    scale, offset : np.ndarray, (channels,) float32
    relu : bool

    Examples
    --------
    >>> Affine("norm", np.ones(2, np.float32), np.zeros(2, np.float32)).relu
    False
    """

    name: str
    scale: np.ndarray
    offset: np.ndarray
    relu: bool = False


@dataclass(frozen=True)
class Pooling:
    """Maximum or average over windows; padded places do not count, as in TensorFlow.

    Attributes
    ----------
    name : str
    kind : str
        "max" or "average".
    size, strides : (int, int)
        Rows, columns.
    padding : str
        "same" or "valid".

    Examples
    --------
    >>> Pooling("pool", "max", (2, 2), (2, 2)).padding
    'valid'
    """

    name: str
    kind: str
    size: tuple[int, int]
    strides: tuple[int, int]
    padding: str = "valid"


@dataclass(frozen=True)
class GlobalPooling:
    """Maximum or average over all rows and columns: (rows, columns, channels) -> (channels,).

    Examples
    --------
    >>> GlobalPooling("pool", "max")
    GlobalPooling(name='pool', kind='max')
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Flatten:
    """(rows, columns, channels) -> (rows * columns * channels,), in this order.

    Examples
    --------
    >>> Flatten("flat")
    Flatten(name='flat')
    """

    name: str


@dataclass(frozen=True, eq=False)
class Dense:
    """y = x @ kernel + bias, then ReLU if `relu`.

    Attributes
    ----------
    name : str
    kernel : np.ndarray, (inputs, outputs) float32
    bias : np.ndarray, (outputs,) float32
    relu : bool

    Examples
    --------
    >>> Dense("dense", np.ones((4, 2), np.float32), np.zeros(2, np.float32)).relu
    False
    """

    name: str
    kernel: np.ndarray
    bias: np.ndarray
    relu: bool = False


Step: TypeAlias = Convolution | Affine | Pooling | GlobalPooling | Flatten | Dense


@dataclass(frozen=True)
class Program:
    """A sequential network.

    Attributes
    ----------
    name : str
        Of the network.
    shape : tuple of int
        (rows, columns, channels) of what the first step takes: the log-mel spectrogram or an image.
    steps : tuple of Step
    front_end : FrontEnd or None
        What makes the first step's input from one-second windows of sound, where the network takes
        waveforms.
    origin : dict of str to str
        Where the network is from, for people.

    Examples
    --------
    >>> Program("pooled", (4, 4, 1), (GlobalPooling("pool", "max"),)).shape
    (4, 4, 1)
    """

    name: str
    shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    front_end: FrontEnd | None = None
    origin: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def sha256(self) -> str:
        """Of what it computes: shapes, options, weights; not of names and origin."""
        digest = hashlib.sha256(repr((self.shape, self.front_end)).encode())
        for step in self.steps:
            digest.update(type(step).__name__.encode())
            for option in fields(step):
                value = getattr(step, option.name)
                if isinstance(value, np.ndarray):
                    digest.update(repr((value.shape, value.dtype.str)).encode())
                    digest.update(value.tobytes())
                elif option.name != "name":
                    digest.update(repr(value).encode())
        return digest.hexdigest()
