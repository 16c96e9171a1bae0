"""Sound classes of recordings: of a whole clip, and over time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tf_keras as keras

from l3prune.audio import frame_audio, load_audio, to_mono
from l3prune.embedding import check_batch_size, is_positive, pair_up, warn
from l3prune.engines import load_model
from l3prune.errors import ParameterError
from l3prune.labels import Labels, read_labels
from l3prune.layers import FrontEndLayer
from l3prune.networks import cnn14, create_network, inference, network_config
from l3prune.sparse import SparseModel
from l3prune.surgery import strip_masks

if TYPE_CHECKING:
    from l3prune.engines import Model

ACTIVATIONS = ("sigmoid", "softmax")

#: Seconds of sound that are computed at once. A whole Cnn14 takes some gigabyte for them.
SECONDS_AT_ONCE = 60

#: Seconds of a window and between windows, of networks that give no scores for frames.
WINDOW, HOP = 2.0, 0.5

#: Segments at either end of a piece of a recording that are computed for their neighbours' sake:
#: a score for a segment depends on less than six at either side.
_CONTEXT = 8


@dataclass(frozen=True)
class Tagger:
    """A network that tells which sounds are heard, ready to compute.

    Attributes
    ----------
    name : str
        The network's.
    sample_rate : int
        Hz.
    labels : Labels
        Of its classes; where nobody named them, "class 0", "class 1" …
    samples : int or None
        That it takes; None: any number from `least` on.
    least : int
        Samples that it needs.
    compute : callable, (n, samples) float32 -> (n, classes), (n, units) float32
        Scores of clips and their embeddings, which are None where there are none.
    segments : callable, (n, samples) float32 -> (n, segments, classes) float32, or None
        Scores of `cnn14.MIN_FRAMES` frames each, of networks that give them.

    Examples
    --------
    >>> network = create_network("cnn14", filters=cnn14.narrow(32), units=64, samples=32000)
    >>> tagger = load_tagger(network)
    >>> tagger.labels.names[0], tagger.sample_rate, tagger.samples, tagger.least
    ('Speech', 32000, None, 9920)
    """

    name: str
    sample_rate: int
    labels: Labels
    samples: int | None
    least: int
    compute: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    segments: Callable[[np.ndarray], np.ndarray] | None = None

    def check_length(self, samples: int) -> None:
        """Refuse audio that is too short for the network.

        Raises
        ------
        ParameterError
            The message tells how long it has to be.
        """
        if samples < self.least:
            raise ParameterError(
                f"the audio has {samples} samples ({samples / self.sample_rate:.3g} s at "
                f"{self.sample_rate} Hz); {self.name} needs {self.least} "
                f"({self.least / self.sample_rate:g} s): give a longer recording, or pad it with "
                "zeros"
            )


def load_tagger(
    model: str | os.PathLike[str] | Model | Tagger,
    *,
    activation: str | None = None,
    labels: str | os.PathLike[str] | Labels | None = None,
) -> Tagger:
    """A network as a `Tagger`, from its weight file or as it is.

    Parameters
    ----------
    model : str, path-like, keras.Model or Tagger
        See `engines.load_model`; of a network the weights are copied. A tagger is given back.
    activation : {"sigmoid", "softmax"} or None
        "sigmoid" scores each class for itself, "softmax" lets them compete for a sum of 1. None
        takes what the network was trained with, the sigmoid for Cnn14. Only Cnn14 and its form for
        detection can have another.
    labels : str, path-like, Labels or None
        A csv, see `labels.read_labels`. None takes the names in the weight file, or for 527
        classes AudioSet's.

    Raises
    ------
    ParameterError
        The network gives no scores of classes, or has another number of them than there are
        labels; or the activation is not among those allowed.
    L3PruneError
        See `engines.load_model`.

    Examples
    --------
    >>> load_tagger(create_network("sea64"))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: network sea64 gives no scores of sound classes; give one that ...
    """
    if isinstance(model, Tagger):
        if activation is not None or labels is not None:
            raise ParameterError("a tagger is what it is; leave out activation and labels")
        return model
    if activation is not None and activation not in ACTIVATIONS:
        raise ParameterError(f"activation={activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    network = load_model(model)
    if isinstance(network, SparseModel):
        raise ParameterError(
            f"{network.program.name} is a packed network, which gives embeddings; give the weight "
            "file of a network that scores classes"
        )
    config = network_config(network)
    if config.name in cnn14.NETWORKS and config.arguments.get("output") != cnn14.EMBEDDING:
        network = _of_any_length(network, activation)
    elif not _scores_classes(network):
        raise ParameterError(
            f"network {config.name} gives no scores of sound classes; give one that takes "
            f"waveforms and ends in a dense layer with {' or '.join(ACTIVATIONS)}, such as "
            f"{', '.join(cnn14.NETWORKS)}"
        )
    elif activation not in (None, _activation(network)):
        raise ParameterError(
            f"network {config.name} ends in {_activation(network)}; activation={activation!r} is "
            f"for {', '.join(cnn14.NETWORKS)}"
        )
    if network.input_shape[1] != 1:
        raise ParameterError(
            f"network {config.name} takes sound of {network.input_shape[1]} channels, and a "
            "tagger makes all sound mono; give a network that was built with channels=1"
        )
    named = _labels(network, labels, config.labels)
    front_end = next(each for each in network.layers if isinstance(each, FrontEndLayer))
    samples = network.input_shape[2]
    compute, segments = _functions(network)
    return Tagger(
        config.name,
        front_end.sample_rate,
        named,
        samples,
        1 if samples else cnn14.MIN_SAMPLES,
        compute,
        segments,
    )


def tag(
    audio: Any,
    sr: Any,
    model: str | os.PathLike[str] | Model | Tagger,
    *,
    batch_size: int = 32,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of all classes for a recording, or for several, and embeddings.

    A recording of more than a minute is cut into parts of equal length, whose scores and
    embeddings are averaged; so is one that is longer than a network takes, the last part padded
    with zeros.

    Parameters
    ----------
    audio : np.ndarray, (samples,) or (samples, channels) float, or path; or list of these
        In [-1, 1]. Channels are averaged, and resampled to the network's rate.
    sr : float, list of float, or None
        Sample rate in Hz; one for all recordings, or one each. None for files.
    model : str, path-like, keras.Model or Tagger
        See `load_tagger`. Of many calls, give each the same tagger.
    batch_size : int
        Clips of one length computed at once, at most.
    **options
        `activation` and `labels` of `load_tagger`.

    Returns
    -------
    clipwise : np.ndarray, (classes,) float32; or (n, classes) of a list
        In [0, 1].
    embedding : np.ndarray, (units,) or (n, units) float32, or None
        What the last layer reads; None of networks that score segments.

    Raises
    ------
    ParameterError
        Audio that is too short for the network, empty or not finite; see `load_tagger` too.
    L3PruneError
        See `load_tagger`.

    Warns
    -----
    L3PruneWarning
        Audio that a network of fixed length got with zeros at its end.

    Examples
    --------
    >>> network = create_network("cnn14", filters=cnn14.narrow(32), units=64)
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> clipwise, embedding = tag([noise, noise], 16000, network)
    >>> clipwise.shape, embedding.shape
    ((2, 527), (2, 64))
    """
    tagger = load_tagger(model, **options)
    recordings, several = _recordings(audio, sr, tagger)
    results: dict[int, list[Any]] = {}
    for owners, batch in _batches(recordings, tagger, batch_size):
        clipwise, embedding = tagger.compute(batch)
        for place, owner in enumerate(owners):
            results.setdefault(owner, []).append(
                (clipwise[place], None if embedding is None else embedding[place])
            )
    means = [
        [None if part[0] is None else np.mean(part, axis=0) for part in zip(*parts, strict=True)]
        for _, parts in sorted(results.items())
    ]
    scores, embeddings = zip(*means, strict=True)
    if not several:
        return scores[0], embeddings[0]
    return np.stack(scores), None if embeddings[0] is None else np.stack(embeddings)


def tag_frames(
    audio: Any,
    sr: Any,
    model: str | os.PathLike[str] | Model | Tagger,
    *,
    window: float | None = None,
    hop_size: float | None = None,
    batch_size: int = 32,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all classes over time.

    `cnn14_decision_level_max` gives them for every 10 ms, in steps of 0.32 s. Of other networks
    windows are tagged, the last one padded with zeros.

    Parameters
    ----------
    audio, sr, model, batch_size, **options
        See `tag`; one recording.
    window : float or None
        Seconds. None: 2, or what the network takes if that is fixed.
    hop_size : float or None
        Seconds between windows. None: 0.5.

    Returns
    -------
    framewise : np.ndarray, (n, classes) float32
    seconds : np.ndarray, (n,) float64
        The middle of each frame or window.

    Raises
    ------
    ParameterError
        As `tag`; or a window or hop that is not positive, or shorter than the network needs, or
        for a network that gives frames.

    Examples
    --------
    >>> network = create_network("cnn14", filters=cnn14.narrow(32), units=64)
    >>> framewise, seconds = tag_frames(np.ones(96000), 32000, network, window=1, hop_size=1)
    >>> framewise.shape, seconds.tolist()
    ((3, 527), [0.5, 1.5, 2.5])
    """
    tagger = load_tagger(model, **options)
    recordings, several = _recordings(audio, sr, tagger)
    if several:
        raise ParameterError("scores over time are of one recording; call it for each")
    samples = next(recordings)
    length, hop = window_samples(tagger, window, hop_size)
    if tagger.segments is not None:
        frames = cnn14.FRONT_END.frames(len(samples))
        segmentwise = np.concatenate(list(_segments(samples, tagger)))[np.newaxis, :, np.newaxis]
        return cnn14.framewise(segmentwise, frames)[0], np.arange(frames) / 100
    # Its windows are of one second: of `length` samples, at a rate of so many. Half a sample keeps
    # the hop from being rounded down.
    windows = frame_audio(samples, length, hop_size=(hop + 0.5) / length, center=False)
    check_batch_size(batch_size)
    size = _at_once(length, tagger, batch_size)
    framewise = [
        tagger.compute(windows[start : start + size])[0] for start in range(0, len(windows), size)
    ]
    seconds = (np.arange(len(windows)) * hop + length / 2) / tagger.sample_rate
    return np.concatenate(framewise), seconds


def window_samples(tagger: Tagger, window: float | None, hop_size: float | None) -> tuple[int, int]:
    """Samples of a window of `tag_frames`, and between windows; its arguments in seconds.

    Raises
    ------
    ParameterError
        See `tag_frames`.

    Examples
    --------
    >>> tagger = load_tagger(create_network("cnn14", filters=cnn14.narrow(32), units=64))
    >>> window_samples(tagger, None, 0.25)
    (64000, 8000)
    """
    given = {"window": window, "hop_size": hop_size}
    for name, value in given.items():
        if value is not None and not (is_positive(value) and 1 <= value * tagger.sample_rate < 2e9):
            raise ParameterError(f"{name}={value!r} is not a positive number of seconds")
        if value is not None and tagger.segments is not None:
            raise ParameterError(
                f"{tagger.name} scores every 10 ms; window and hop_size are for other networks"
            )
    fixed = tagger.samples
    if window is None:
        length = fixed or round(WINDOW * tagger.sample_rate)
    else:
        length = round(window * tagger.sample_rate)
        if fixed is not None and length != fixed:
            raise ParameterError(
                f"window={window}: {tagger.name} takes {fixed / tagger.sample_rate:g} s; leave "
                "it out"
            )
        if length < tagger.least:
            raise ParameterError(
                f"window={window}: {tagger.name} needs {tagger.least / tagger.sample_rate:g} s"
            )
    return length, round((HOP if hop_size is None else hop_size) * tagger.sample_rate)


def _activation(network: keras.Model) -> str:
    """The last activation of a network, by name."""
    last = network.get_layer(network.output_names[0])
    return getattr(getattr(last, "activation", None), "__name__", "none")


def _scores_classes(network: keras.Model) -> bool:
    """Whether a network takes sound and ends in scores of classes."""
    weighted = [layer for layer in network.layers if layer.weights]
    return (
        len(network.inputs) == len(network.outputs) == 1
        and any(isinstance(layer, FrontEndLayer) for layer in network.layers)
        and isinstance(weighted[-1], keras.layers.Dense)
        and _activation(network) in ACTIVATIONS
    )


def _of_any_length(network: keras.Model, activation: str | None) -> keras.Model:
    """A Cnn14 or its form for detection for waveforms of any length, with the same weights."""
    config, plain = network_config(network), strip_masks(network)
    own = config.arguments.get("activation")
    copy = create_network(
        config.name,
        **{
            **config.arguments,
            "input": "waveform",
            "samples": None,
            "output": cnn14.CLIPWISE if config.name == cnn14.CNN14 else cnn14.SEGMENTWISE,
            "activation": activation or (own if own in ACTIVATIONS else "sigmoid"),
        },
    )
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(plain.get_layer(layer.name).get_weights())
    return copy


def _labels(network: keras.Model, given: Any, stored: tuple[str, ...]) -> Labels:
    count = network.output_shape[-1]
    if given is None:
        if stored:
            return Labels(stored)
        if count == cnn14.CLASSES:
            return read_labels()
        return Labels(tuple(f"class {number}" for number in range(count)))
    labels = given if isinstance(given, Labels) else read_labels(given)
    if len(labels.names) != count:
        source = "labels" if isinstance(given, Labels) else given
        raise ParameterError(
            f"{source} has {len(labels.names)} classes, network {network.name} {count}; give the "
            "labels that it was trained with"
        )
    return labels


def _functions(network: keras.Model) -> tuple[Callable, Callable | None]:
    """`compute` and `segments` of a `Tagger`."""
    if len(network.output_shape) == 2:
        classifier = [layer for layer in network.layers if layer.weights][-1]
        infer = inference(keras.Model(network.inputs, [network.output, classifier.input]))
        return lambda clips: tuple(infer(clips[:, np.newaxis])), None
    infer = inference(network)

    def segments(clips: np.ndarray) -> np.ndarray:
        return infer(clips[:, np.newaxis])[:, :, 0]

    return lambda clips: (segments(clips).max(axis=1), None), segments


def _recordings(audio: Any, sr: Any, tagger: Tagger) -> tuple[Iterator[np.ndarray], bool]:
    """Recordings at the tagger's rate, each long enough, and whether they are a list."""
    path = str | os.PathLike
    several = isinstance(audio, list | tuple) and bool(audio)
    if isinstance(audio, path) or (several and all(isinstance(each, path) for each in audio)):
        if sr is not None:
            raise ParameterError(f"files have a sample rate of their own; sr={sr!r}, give None")
        sources: Iterable[Any] = map(load_audio, audio if several else [audio])
    else:
        arrays, rates, several = pair_up(audio, sr, "recordings", "sample rates")
        sources = zip(arrays, rates, strict=True)

    def mono() -> Iterator[np.ndarray]:
        for array, rate in sources:
            samples = to_mono(array, rate, tagger.sample_rate)
            tagger.check_length(len(samples))
            yield samples

    return mono(), several


def _batches(
    recordings: Iterable[np.ndarray], tagger: Tagger, batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Clips of one length, (n, samples), with the numbers of their recordings."""
    check_batch_size(batch_size)
    owners: list[int] = []
    clips: list[np.ndarray] = []
    for owner, samples in enumerate(recordings):
        for clip in _clips(samples, tagger):
            full = len(clips) == _at_once(len(clip), tagger, batch_size)
            if clips and (full or len(clip) != len(clips[0])):
                yield owners, np.stack(clips)
                owners, clips = [], []
            owners.append(owner)
            clips.append(clip)
    yield owners, np.stack(clips)


def _at_once(length: int, tagger: Tagger, batch_size: int) -> int:
    return max(min(batch_size, SECONDS_AT_ONCE * tagger.sample_rate // length), 1)


def _clips(samples: np.ndarray, tagger: Tagger) -> list[np.ndarray]:
    """A recording as a tagger takes it, in parts of one length (but for a sample)."""
    if tagger.samples is None:
        parts = -(-len(samples) // (SECONDS_AT_ONCE * tagger.sample_rate))
        return np.array_split(samples, parts)
    parts = -(-len(samples) // tagger.samples)
    if len(samples) < tagger.samples:
        long, padded = len(samples) / tagger.sample_rate, tagger.samples / tagger.sample_rate
        warn(f"the audio is {long:.3g} s long; it was zero-padded to {padded:g} s")
    return list(
        np.pad(samples, (0, parts * tagger.samples - len(samples))).reshape(parts, tagger.samples)
    )


def _segments(samples: np.ndarray, tagger: Tagger) -> Iterator[np.ndarray]:
    """Scores of all segments of a recording, (n, classes) a piece, as if computed at once."""
    length = cnn14.MIN_FRAMES * cnn14.FRONT_END.hop_length
    count = cnn14.FRONT_END.frames(len(samples)) // cnn14.MIN_FRAMES
    step = SECONDS_AT_ONCE * tagger.sample_rate // length
    for start in range(0, count, step):
        stop = min(start + step, count)
        first, last = max(start - _CONTEXT, 0), stop + _CONTEXT
        end = len(samples) if last >= count else last * length
        scores = cast(Callable, tagger.segments)(samples[np.newaxis, first * length : end])
        yield scores[0, start - first : stop - first]
