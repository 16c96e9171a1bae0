"""Linear maps between a teacher's embedding and a smaller student's.

Two ways to compare embeddings t (teacher, T values) and e (student, S <= T values):

pca
    The target is the teacher's embedding on its first S principal components, y = (t - mean) V,
    as in SEA (Srivastava, Roy, Cartwright, Bello, Arora: *Specialized embedding approximation for
    edge intelligence: a case study in urban sound classification*, ICASSP 2021). The loss is
    |e - y|^2.
linear
    A map that is trained with the student brings it to the teacher's size, z = e W + b, and the
    loss is |z - t|^2. The student is used without it.

Deviations from SEA's published code (`fit_pca`). It standardises every value of the teacher's
embedding before the PCA; here that is an option. It takes the first 500,000 points that it reads, a
sample chosen beforehand; here they are drawn from the training windows by a seed. It keeps the map
as a pickle, with the signs that its solver happened to give; here it is a .npz file with a rule for
the signs.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tf_keras as keras

from l3prune.checkpoints import BEST, LATEST, epochs_done, trained_beside
from l3prune.disguise import Disguised
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, not_allowed, read_json
from l3prune.networks import attach_config, network_config

#: The map between the embeddings, in a run's folder.
REDUCTION = "reduction.npz"

#: The trained map after the last epochs and the best one, of runs begun before checkpoints held it.
LINEAR_MAP = "linear_map.npz"

KINDS = ("pca", "linear")

#: SEA's number of points.
MAX_WINDOWS = 500_000

#: Rows that are taken from disk and made float64 at a time.
_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Reduction:
    """How a teacher's and a smaller student's embeddings compare.

    Attributes
    ----------
    kind : {"pca", "linear"}
        What the map takes: the teacher's embedding, or the student's.
    mean : np.ndarray, (T,)
        Subtracted from the teacher's embedding; of "linear", added behind the student's.
    matrix : np.ndarray
        (T, S) of "pca", (S, T) of "linear".

    Raises
    ------
    ParameterError
        Unknown kind, or shapes that do not fit.

    Examples
    --------
    >>> reduction = Reduction("pca", np.array([1.0, 0.0]), np.array([[0.0], [2.0]]))
    >>> reduction.apply(np.array([[5.0, 3.0]]))
    array([[6.]], dtype=float32)
    """

    kind: str
    mean: np.ndarray
    matrix: np.ndarray

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ParameterError(f"reduction {self.kind!r}; allowed: {', '.join(map(repr, KINDS))}")
        for name in ("mean", "matrix"):
            array = np.array(getattr(self, name))
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ParameterError(f"reduction {self.kind}: {name} is not of finite numbers")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        teacher = 0 if self.kind == "pca" else 1
        if (
            self.mean.ndim != 1
            or self.matrix.ndim != 2
            or self.matrix.shape[teacher] != len(self.mean)
        ):
            raise ParameterError(
                f"reduction {self.kind}: mean of shape {self.mean.shape} and matrix of shape "
                f"{self.matrix.shape} do not fit; see Reduction"
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """Values of the teacher's and of the student's embedding."""
        return len(self.mean), self.matrix.shape[1 if self.kind == "pca" else 0]

    def apply(self, targets: np.ndarray) -> np.ndarray:
        """What is to be met: projected targets (n, S) of "pca", the targets (n, T) of "linear"."""
        if self.kind == "linear":
            return np.asarray(targets, np.float32)
        return ((targets - self.mean) @ self.matrix).astype(np.float32)

    def expand(self, embeddings: np.ndarray) -> np.ndarray:
        """What meets it: the embeddings (n, S) of "pca", mapped to (n, T) by "linear"."""
        if self.kind == "pca":
            return np.asarray(embeddings, np.float32)
        return (embeddings @ self.matrix + self.mean).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz file, atomically."""
        with atomic_write(path) as temporary:
            np.savez(temporary, kind=np.array(self.kind), mean=self.mean, matrix=self.matrix)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reduction:
        """Read what `save` wrote; an `L3PruneError` if the file is missing or damaged."""
        arrays = read_arrays(path, "kind", "mean", "matrix")
        try:
            return cls(str(arrays["kind"]), arrays["mean"], arrays["matrix"])
        except ParameterError as error:
            raise L3PruneError(f"{path} is damaged: {error}") from error


def read_arrays(path: str | os.PathLike[str], *names: str) -> dict[str, np.ndarray]:
    """Named arrays of a .npz file.

    Raises
    ------
    L3PruneError
        The file is missing or damaged, or lacks one of them.

    Examples
    --------
    >>> read_arrays("/nowhere/reduction.npz")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such file: /nowhere/reduction.npz
    """
    if not Path(path).is_file():
        raise L3PruneError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except PermissionError as error:
        raise not_allowed(path) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise L3PruneError(f"{path} is damaged: {error}") from error


def fit_pca(
    targets: np.ndarray,
    size: int,
    *,
    max_windows: int = MAX_WINDOWS,
    seed: int = 0,
    standardize: bool = False,
) -> Reduction:
    """The principal components of a teacher's embeddings.

    With the mean m and the covariance C = sum (t - m)(t - m)' / (n - 1), the matrix has the
    eigenvectors of the `size` largest eigenvalues of C, in falling order; of each, the element of
    largest magnitude is positive. With `standardize`, every value is divided by its standard
    deviation s before (values that never change are left alone), and the matrix has
    diag(1/s) V: `apply` then needs no further step.

    The covariance is summed in float64, part by part: any number of windows takes little memory.

    Parameters
    ----------
    targets : np.ndarray, (n, T) float
        May be memory-mapped.
    size : int
        Values of the student's embedding, at most T and at most n.
    max_windows : int
        If there are more, so many are drawn by `seed`.
    seed : int
    standardize : bool

    Returns
    -------
    reduction : Reduction

    Raises
    ------
    ParameterError
        Fewer windows than components, or `size` outside its range.

    Examples
    --------
    >>> line = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    >>> fit_pca(line, 1).apply(line)
    array([[-5.],
           [ 0.],
           [ 5.]], dtype=float32)
    """
    if targets.ndim != 2:
        raise ParameterError(f"targets of shape {targets.shape} given; PCA takes (n, values)")
    count, values = targets.shape
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= values:
        raise ParameterError(f"size={size!r} is not a whole number in 1 … {values}")
    used = min(count, max_windows)
    if used < max(size, 2):
        raise ParameterError(
            f"{used} windows given for {size} components; PCA needs at least as many windows as "
            "components, and two: give more audio, a smaller hop_size, or a smaller student"
        )
    chosen = None
    if count > max_windows:
        chosen = np.sort(np.random.default_rng(seed).choice(count, max_windows, replace=False))

    def parts():
        for start in range(0, used, _ROWS):
            part = slice(start, start + _ROWS)
            yield np.asarray(targets[part if chosen is None else chosen[part]], np.float64)

    mean = np.zeros(values)
    for part in parts():
        mean += part.sum(axis=0)
    mean /= used
    covariance = np.zeros((values, values))
    for part in parts():
        centred = part - mean
        covariance += centred.T @ centred
    covariance /= used - 1
    scale = np.ones(values)
    if standardize:
        deviation = np.sqrt(np.diag(covariance))
        scale = np.where(deviation > 0, deviation, 1)
        covariance /= np.outer(scale, scale)
    _, vectors = np.linalg.eigh(covariance)
    components = vectors[:, ::-1][:, :size]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(size)])
    return Reduction("pca", mean, components / scale[:, np.newaxis])


def unexplained(met: np.ndarray, wanted: np.ndarray) -> float:
    """Squared error as a fraction of the variance: sum |met - wanted|^2 / sum |wanted - mean|^2.

    0 is perfect; 1 is no better than the mean.

    Raises
    ------
    ParameterError
        The shapes differ, or `wanted` does not vary.

    Examples
    --------
    >>> unexplained(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]]))
    1.0
    """
    if met.shape != wanted.shape:
        raise ParameterError(f"embeddings of shapes {met.shape} and {wanted.shape} do not compare")
    wanted = np.asarray(wanted, np.float64)
    variance = float(np.square(wanted - wanted.mean(axis=0)).sum())
    if not variance:
        raise ParameterError("the target is the same in all windows; give more and other windows")
    return float(np.square(met - wanted).sum()) / variance


def with_linear_map(student: keras.Model, targets: np.ndarray, seed: int) -> keras.Model:
    """A student with a linear map to the teacher's size behind it, for `training.fit`.

    The map starts with the mean target and random weights. It is no part of the networks that
    checkpoints hold; `save_best_map` writes what it was in the best of them.

    Parameters
    ----------
    student : keras.Model
        Its layers are the mapped network's own: it is trained in place.
    targets : np.ndarray, (n, T) float32
        The teacher's embeddings.
    seed : int

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> mapped = with_linear_map(create_network("sea64"), np.zeros((3, 512)), seed=0)
    >>> mapped.output_shape, mapped.layers[-1].name
    ((None, 512), 'embedding')
    """
    dense = keras.layers.Dense(
        targets.shape[1],
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        # Mixed precision computes in float16, an embedding is float32.
        dtype="float32",
        name="linear_map",
    )
    mapped = Disguised(student.inputs, dense(student.output), name=student.name)
    mapped.show(student.layers)
    # Past Keras's own attributes, which would make the map a layer once more.
    object.__setattr__(mapped, "map", dense)
    dense.bias.assign(np.asarray(targets, np.float32).mean(axis=0))
    return attach_config(mapped, network_config(student))


def trains_a_map(output_dir: Path) -> bool:
    """Whether the run in a folder trains a linear map with its student.

    Examples
    --------
    >>> trains_a_map(Path("/nowhere"))
    False
    """
    latest = output_dir / LATEST
    if (output_dir / LINEAR_MAP).is_file():
        return True
    # What quantised students have beside them has other shapes.
    return latest.is_file() and [each.ndim for each in trained_beside(latest)] == [2, 1]


def restore_earlier_map(mapped: keras.Model, output_dir: Path) -> None:
    """Give a network the map of a run whose latest checkpoint does not hold it.

    Runs begun by earlier versions kept it in a file of its own, linear_map.npz.

    Raises
    ------
    L3PruneError
        There is none, or it is not of this run.

    Examples
    --------
    >>> restore_earlier_map(keras.Sequential(), Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such weight file: /nowhere/model_latest.h5
    """
    if not trained_beside(output_dir / LATEST):
        found = _earlier_map(output_dir, epochs_done(output_dir))
        if found.matrix.shape != tuple(mapped.map.kernel.shape):
            raise L3PruneError(f"{output_dir / LINEAR_MAP} has a map of shape {found.matrix.shape}")
        mapped.map.set_weights([found.matrix, found.mean])


def save_best_map(output_dir: Path) -> None:
    """Write reduction.npz: the map that belongs to a run's best checkpoint.

    Examples
    --------
    >>> save_best_map(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such weight file: /nowhere/model_best_valid_loss.h5
    """
    trained = trained_beside(output_dir / BEST)
    if trained:
        matrix, mean = trained
        best = Reduction("linear", mean, matrix)
    else:
        epoch = read_json((output_dir / BEST).with_suffix(".json"))["epoch"]
        best = _earlier_map(output_dir, epoch)
    best.save(output_dir / REDUCTION)


def _earlier_map(output_dir: Path, epoch: int) -> Reduction:
    """The map after an epoch, from linear_map.npz."""
    path = output_dir / LINEAR_MAP
    arrays = read_arrays(path, "epochs", "means", "matrices")
    try:
        place = arrays["epochs"].tolist().index(epoch)
        return Reduction("linear", arrays["means"][place], arrays["matrices"][place])
    except (AttributeError, ValueError, TypeError, IndexError) as error:
        raise L3PruneError(
            f"{path} does not have the map after epoch {epoch}; it is not of this run"
        ) from error
