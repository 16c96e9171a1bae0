"""Teacher and student: train a smaller network to give the larger network's embedding."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tf_keras as keras

from l3prune.batches import Numbered
from l3prune.checkpoints import take_weights
from l3prune.checks import check_sizes
from l3prune.devices import Devices
from l3prune.errors import ParameterError
from l3prune.gradual import MaskUpdate
from l3prune.networks import inference, l3
from l3prune.recipes import Recipe
from l3prune.reduction import (
    KINDS,
    REDUCTION,
    Reduction,
    fit_pca,
    restore_earlier_map,
    save_best_map,
    trains_a_map,
    unexplained,
    with_linear_map,
)
from l3prune.training import fit
from l3prune.weights import fingerprint
from l3prune.windows import (
    Resampled,
    Shards,
    WindowSource,
    batch_indices,
    cached_targets,
    evenly,
    open_windows,
)

#: One source for both networks, or the student's and the teacher's.
Windows = WindowSource | tuple[WindowSource, WindowSource]


def distill(
    student: keras.Model,
    teacher: keras.Model,
    train: Windows | str | os.PathLike[str],
    validation: Windows | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    reduction: str | Reduction | None = None,
    recipe: Recipe | None = None,
    batch_size: int = 64,
    validation_batch_size: int = 64,
    train_epoch_size: int | None = None,
    validation_epoch_size: int | None = None,
    hop_size: float = 0.5,
    cache_dir: str | os.PathLike[str] | None = None,
    pruner: MaskUpdate | None = None,
    devices: Devices | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train `student` in place to minimise the squared distance to the teacher's embedding.

    The loss is the mean squared error over the embedding, the same tensor on both sides (plus the
    student's weight decay); the mean absolute error is reported. EdgeL3's own training compared
    the student's activated embedding with the teacher's raw one. The teacher sees each window
    once; its embeddings are kept in the cache folder. Masked layers keep their zeros.

    With a `reduction`, the student's embedding may be smaller, may be taken elsewhere, and the two
    networks may hear different front ends; see `reduction` for the equations. Then `output_dir`
    holds the map as reduction.npz. Principal components have both signs: a student whose embedding
    is activated, as SEA's are, cannot meet their negative half, and one with
    embedding_point="raw", or a linear map, can.

    Parameters
    ----------
    student, teacher : keras.Model
        L3 networks with waveform input; without a reduction, with the same front end and embedding.
    train, validation : WindowSource, pair of these, str or path-like
        Windows, or folders of audio files or of AVC HDF5 shards; see `windows.open_windows`. For
        networks of different sample rates, see `open_pair`.
    output_dir : str or path-like
        Checkpoints and history; see `training.fit`.
    reduction : {"pca", "linear"}, Reduction or None
        "pca": the student learns the teacher's first principal components over the training
        windows. "linear": the student learns along with a linear map of its embedding to the
        teacher's, which is no part of it. A `Reduction` of kind "pca" is one fitted elsewhere.
    recipe : Recipe or None
        None takes EdgeL3's.
    batch_size, validation_batch_size : int
        Windows a step, on all devices together.
    train_epoch_size, validation_epoch_size : int or None
        Batches an epoch; None takes as many as hold all windows. Training goes on from one pass
        over the windows to the next where it stands, so that the last batch of the one may have
        the first windows of the other. A shorter validation takes windows evenly over the data,
        always the same.
    hop_size : float
        Seconds between the windows of an audio file.
    cache_dir : str or path-like, or None
        None: `output_dir`/cache.
    pruner : MaskUpdate or None
        Changes the student's masks while it is trained; see `training.fit`.
    devices : Devices or None
        None is one device in float32; see `training.fit`.
    resume : bool
        Go on with the run in `output_dir`.
    quiet : bool
        No progress bars.

    Returns
    -------
    history : list of dict
        See `training.fit`. `student` has the weights of the best validation loss.

    Raises
    ------
    ParameterError
        The networks do not compare, or a size is not positive.
    L3PruneError
        Data or folders are not what they should be.

    Examples
    --------
    >>> import tempfile, soundfile
    >>> from l3prune.networks import create_network
    >>> folder = Path(tempfile.mkdtemp())
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> (folder / "sounds").mkdir()
    >>> soundfile.write(folder / "sounds" / "noise.wav", noise, 8000)
    >>> teacher, student = (create_network("sea64", filters=[2] * 8) for _ in range(2))
    >>> recipe = Recipe(epochs=2, learning_rate=1e-3)
    >>> sides = [folder / "sounds"] * 2
    >>> len(distill(student, teacher, *sides, folder / "out", recipe=recipe, quiet=True))
    2
    """
    recipe = recipe or Recipe()
    check_sizes(
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
        train_epoch_size=train_epoch_size,
        validation_epoch_size=validation_epoch_size,
    )
    devices = devices or Devices()
    devices.check_batch(batch_size)
    kind = reduction.kind if isinstance(reduction, Reduction) else reduction
    if kind == "linear" and reduction != "linear":
        raise ParameterError("a linear map is trained along with its student: reduction='linear'")
    check_pair(student, teacher, reduction)
    output_dir = Path(output_dir)
    cache_dir = output_dir / "cache" if cache_dir is None else Path(cache_dir)
    if resume:
        _check_continued(output_dir, kind)
    rates = l3.front_end(student).sample_rate, l3.front_end(teacher).sample_rate
    sides = [
        open_pair(side, rates, cache_dir, hop_size=hop_size, quiet=quiet)
        if isinstance(side, str | os.PathLike)
        else _pair(side, rates)
        for side in (train, validation)
    ]
    (train_source, _), (validation_source, _) = sides
    train_targets, validation_targets = (
        _targets(teacher, source, cache_dir, validation_batch_size, quiet) for _, source in sides
    )

    apply: Callable[[np.ndarray], np.ndarray] = np.asarray
    trained = devices.copy(student)
    if kind == "pca":
        if resume:
            reduction = Reduction.load(output_dir / REDUCTION)
            check_pair(student, teacher, reduction)
        elif not isinstance(reduction, Reduction):
            reduction = fit_pca(train_targets, student.output_shape[1], seed=recipe.seed)
            # On other processors the signs could be others.
            mean, matrix = devices.from_chief([reduction.mean, reduction.matrix])
            reduction = Reduction(kind, mean, matrix)
        apply = reduction.apply
        if devices.chief:
            reduction.save(output_dir / REDUCTION)
    elif kind == "linear":
        with devices.scope():
            trained = with_linear_map(trained, train_targets, recipe.seed)
        if resume:
            restore_earlier_map(trained, output_dir)

    chosen = evenly(len(validation_source), validation_batch_size, validation_epoch_size)
    history = fit(
        trained,
        Numbered(
            functools.partial(batch_indices, train_source, batch_size, recipe.seed),
            lambda indices: (train_source.read(indices), apply(train_targets[indices])),
        ),
        Numbered(
            lambda first: iter(chosen[first:]),
            lambda indices: (validation_source.read(indices), apply(validation_targets[indices])),
        ),
        train_epoch_size or -(-len(train_source) // batch_size),
        output_dir,
        recipe,
        pruner=pruner,
        data={
            "batch_size": batch_size,
            "training_size": len(train_source),
            "validation_size": len(validation_source),
        },
        devices=devices,
        resume=resume,
        quiet=quiet,
    )
    take_weights(student, trained)
    if kind == "linear" and devices.chief:
        save_best_map(output_dir)
    return history


def unexplained_variance(
    student: keras.Model,
    teacher: keras.Model,
    windows: Windows,
    cache_dir: str | os.PathLike[str],
    reduction: Reduction | None = None,
    *,
    batch_size: int = 64,
    quiet: bool = False,
) -> float:
    """The squared error of a student, as a fraction of the variance of what it is to meet.

    With "pca", that is the projected embedding of the teacher; else its whole embedding.

    Parameters
    ----------
    student, teacher : keras.Model
        As in `distill`.
    windows : WindowSource, or pair of these
        Best of recordings that training did not hear; see `open_pair`.
    cache_dir : str or path-like
        Where the teacher's embeddings are kept.
    reduction : Reduction or None
        What `distill` left in its folder: `Reduction.load(folder / REDUCTION)`.
    batch_size : int
    quiet : bool

    Returns
    -------
    fraction : float
        See `reduction.unexplained`.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64")
    >>> class Noise:
    ...     sample_rate, fingerprint = 8000, "noise"
    ...     def __len__(self): return 3
    ...     def read(self, indices):
    ...         seeds = [np.random.default_rng(int(index)) for index in indices]
    ...         return np.float32([[seed.uniform(-1, 1, 8000)] for seed in seeds])
    >>> unexplained_variance(network, network, Noise(), tempfile.mkdtemp(), quiet=True)
    0.0
    """
    check_pair(student, teacher, reduction)
    rates = l3.front_end(student).sample_rate, l3.front_end(teacher).sample_rate
    student_source, teacher_source = _pair(windows, rates)
    targets = np.asarray(_targets(teacher, teacher_source, Path(cache_dir), batch_size, quiet))
    infer = inference(student)
    starts = range(0, len(student_source), batch_size)
    embeddings = np.concatenate(
        [
            infer(student_source.read(np.arange(start, min(start + batch_size, len(targets)))))
            for start in starts
        ]
    )
    if reduction is None:
        return unexplained(embeddings, targets)
    return unexplained(reduction.expand(embeddings), reduction.apply(targets))


def open_pair(
    data_dir: str | os.PathLike[str],
    rates: tuple[int, int],
    cache_dir: str | os.PathLike[str],
    *,
    hop_size: float = 0.5,
    quiet: bool = False,
) -> tuple[WindowSource, WindowSource]:
    """The same windows of a folder at a student's and at a teacher's sample rate.

    Audio files are decoded at both rates and cut at the same seconds. Shards must have the higher
    rate; their windows are resampled one by one for the network of the lower rate.

    Parameters
    ----------
    data_dir, cache_dir, hop_size, quiet
        See `windows.open_windows`.
    rates : tuple of 2 int
        Hz, of the student and of the teacher.

    Returns
    -------
    student_windows, teacher_windows : WindowSource
        The same one if the rates are.

    Raises
    ------
    L3PruneError
        As `windows.open_windows`.

    Examples
    --------
    >>> import tempfile, soundfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", np.zeros(44100), 22050)
    >>> pair = open_pair(folder, (8000, 48000), folder / "cache", quiet=True)
    >>> [source.read(np.array([2])).shape for source in pair]
    [(1, 1, 8000), (1, 1, 48000)]
    """
    first = open_windows(
        data_dir,
        max(rates),
        cache_dir,
        hop_size=hop_size,
        paired=rates[0] != rates[1],
        quiet=quiet,
    )
    if rates[0] == rates[1] or isinstance(first, Shards):
        return _pair(first, rates)
    second = open_windows(
        data_dir, min(rates), cache_dir, hop_size=hop_size, paired=True, quiet=quiet
    )
    return _pair((second, first) if rates[0] < rates[1] else (first, second), rates)


def _pair(windows: Windows, rates: tuple[int, int]) -> tuple[WindowSource, WindowSource]:
    """The student's and the teacher's windows, which must be the same seconds of audio."""
    if isinstance(windows, tuple):
        pair = windows
    elif windows.sample_rate == max(rates) != min(rates):
        lower = Resampled(windows, min(rates))
        pair = (lower, windows) if rates[0] < rates[1] else (windows, lower)
    else:
        pair = (windows, windows)
    if len(pair) != 2 or tuple(source.sample_rate for source in pair) != rates:
        given = " and ".join(dict.fromkeys(f"{source.sample_rate} Hz" for source in pair))
        wanted = " and ".join(dict.fromkeys(f"{rate} Hz" for rate in rates))
        raise ParameterError(
            f"windows at {given} given; the networks take {wanted} (student, teacher)"
        )
    if len(pair[0]) != len(pair[1]):
        raise ParameterError(
            f"{len(pair[0])} windows for the student and {len(pair[1])} for the teacher given; "
            "give the same windows at both sample rates, as open_pair does"
        )
    return pair


def _targets(
    teacher: keras.Model, source: WindowSource, cache_dir: Path, batch_size: int, quiet: bool
) -> np.ndarray:
    return cached_targets(
        source,
        inference(teacher),
        fingerprint(teacher),
        teacher.output_shape[1],
        cache_dir,
        batch_size=batch_size,
        quiet=quiet,
    )


def check_pair(
    student: keras.Model, teacher: keras.Model, reduction: str | Reduction | None
) -> None:
    """Refuse networks whose embeddings do not compare, as `distill` does.

    Raises
    ------
    ParameterError
        The message says what would make them compare.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> check_pair(create_network("sea64"), create_network("mel256"), None)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: student sea64 and teacher mel256 have different front ends; ...
    """
    for role, network in (("student", student), ("teacher", teacher)):
        l3.front_end(network)  # refuses networks of images
        if len(network.input_shape) != 3:
            raise ParameterError(f"the {role} takes log-mel input; build it with input='waveform'")
    sizes = teacher.output_shape[1], student.output_shape[1]
    if isinstance(reduction, Reduction):
        if reduction.sizes != sizes:
            raise ParameterError(
                f"the reduction is from {reduction.sizes[0]} to {reduction.sizes[1]} values, the "
                f"teacher's and the student's embeddings have {sizes[0]} and {sizes[1]}"
            )
    elif reduction is not None and reduction not in KINDS:
        allowed = ", ".join(map(repr, KINDS))
        raise ParameterError(f"reduction={reduction!r}; allowed: {allowed}, a Reduction, None")
    if reduction is not None:
        if sizes[1] > sizes[0]:
            raise ParameterError(
                f"the student's embedding has {sizes[1]} values, the teacher's {sizes[0]}; a "
                "reduction is for students with no more than the teacher"
            )
        return
    if l3.front_end(student) != l3.front_end(teacher):
        raise ParameterError(
            f"student {student.name} and teacher {teacher.name} have different front ends; "
            "distil between networks that hear the same, or give reduction='pca' or 'linear'"
        )
    if sizes[0] != sizes[1]:
        raise ParameterError(
            f"the student's embedding has {sizes[1]} values, the teacher's {sizes[0]}; they must "
            "be equal, or give reduction='pca' or 'linear' for a smaller student"
        )
    if l3.embedding_point(student) != l3.embedding_point(teacher):
        raise ParameterError(
            "student and teacher take their embeddings before and after the activation; "
            "build both with the same embedding_point"
        )


def _check_continued(output_dir: Path, kind: str | None) -> None:
    """Refuse to go on with a run of another reduction."""
    stored = None
    if trains_a_map(output_dir):
        stored = "linear"
    elif (output_dir / REDUCTION).is_file():
        stored = Reduction.load(output_dir / REDUCTION).kind
    if stored != kind:
        raise ParameterError(
            f"the run in {output_dir} has reduction={stored!r}, not {kind!r}; continue it with its "
            "own"
        )
