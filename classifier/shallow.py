"""Support vector machine and random forest: trained by scikit-learn, kept and used as arrays.

Arrays, and not skops or pickles: the same seed gives the same bytes (skops stores object ids and
the time), prediction needs no scikit-learn, and there is nothing in a file that could be run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifier.checks import check_count, check_positive, check_seed
from l3prune.errors import L3PruneError, ParameterError

KERNELS = ("rbf", "sigmoid", "linear", "poly")

#: Degree of the polynomial kernel and constant of it and of the sigmoid: scikit-learn's defaults.
DEGREE, COEF0 = 3, 0.0

#: Parts of the training clips that are held out in turn to fit the SVM's probabilities.
CALIBRATION_FOLDS = 5

#: Values of the kernel matrix computed at once in a prediction.
KERNEL_VALUES = 2**23


@dataclass(frozen=True)
class SVMRecipe:
    """How to train a support vector machine.

    Attributes
    ----------
    C : float
        Penalty of a row on the wrong side of the margin.
    kernel : {"rbf", "sigmoid", "linear", "poly"}
        Its gamma is 1 / (row length x variance of the rows), poly has degree 3.
    tol : float
        Where the solver stops.

    Raises
    ------
    ParameterError
        Another kernel, or a value that is not positive.

    Examples
    --------
    >>> SVMRecipe(C=10)
    SVMRecipe(C=10, kernel='rbf', tol=0.001)
    """

    C: float = 1.0
    kernel: str = "rbf"
    tol: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("C", self.C, start="1")
        check_positive("tol", self.tol, start="1e-3")
        if self.kernel not in KERNELS:
            raise ParameterError(f"kernel={self.kernel!r} is unknown; known: {', '.join(KERNELS)}")


@dataclass(frozen=True)
class ForestRecipe:
    """How to train a random forest: scikit-learn's defaults, and how many trees.

    Raises
    ------
    ParameterError
        No tree.

    Examples
    --------
    >>> ForestRecipe(trees=500)
    ForestRecipe(trees=500)
    """

    trees: int = 100

    def __post_init__(self) -> None:
        check_count("trees", self.trees)


@dataclass(frozen=True, eq=False)
class SVM:
    """A trained support vector machine with one sigmoid per class for its probabilities.

    Attributes
    ----------
    kernel : str
    gamma : float
    classes : np.ndarray, (k,) int64
        The classes that had training rows, ascending.
    n_classes : int
        Length of the output; classes without training rows have probability 0.
    vectors : np.ndarray, (v, in) float32
        Support vectors, those of the first class first.
    counts : np.ndarray, (k,) int64
        How many each class has.
    coefficients : np.ndarray, (k - 1, v) float64
        Of the pairwise machines, as libsvm orders them.
    intercepts : np.ndarray, (k (k - 1) / 2,) float64
    slopes, offsets : np.ndarray, (k,) or, with two classes, (1,) float64
        Of the sigmoids, 1 / (1 + exp(slope x score + offset)).

    Examples
    --------
    >>> rows, targets = np.float32([[0], [1], [5], [6]]), np.array([0, 0, 1, 1])
    >>> svm = fit_svm(rows, targets, np.arange(4), 2)
    >>> svm.predict(np.float32([[0.5], [5.5]])).argmax(axis=1)
    array([0, 1])
    """

    kernel: str
    gamma: float
    classes: np.ndarray
    n_classes: int
    vectors: np.ndarray
    counts: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    slopes: np.ndarray
    offsets: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Length of a row, number of classes."""
        return self.vectors.shape[1], self.n_classes

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Class probabilities of each row, (n, in) float32 -> (n, classes) float32."""
        size = max(1, KERNEL_VALUES // max(1, len(self.vectors)))
        parts = [self._predict(rows[start : start + size]) for start in range(0, len(rows), size)]
        return np.concatenate(parts)

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        scores = self._scores(rows)
        # A sigmoid without the overflow of its exponential.
        sigmoids = 0.5 * (1 - np.tanh((scores * self.slopes + self.offsets) / 2))
        if len(self.classes) == 2:
            sigmoids = np.hstack([1 - sigmoids, sigmoids])
        sums = sigmoids.sum(axis=1, keepdims=True)
        uniform = np.full_like(sigmoids, 1 / len(self.classes))
        probabilities = np.zeros((len(rows), self.n_classes), np.float32)
        probabilities[:, self.classes] = np.divide(sigmoids, sums, out=uniform, where=sums > 0)
        return probabilities

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        """One score per class, or of the second of two classes, (n, k or 1) float64.

        Votes of the pairwise machines; their margins decide between equal numbers of votes.
        """
        kernel = self._kernel(rows.astype(np.float64))
        ends = np.cumsum(self.counts)
        parts = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        k = len(self.classes)
        votes, margins = np.zeros((2, len(rows), k))
        for pair, (i, j) in enumerate(itertools.combinations(range(k), 2)):
            margin = (
                kernel[:, parts[i]] @ self.coefficients[j - 1, parts[i]]
                + kernel[:, parts[j]] @ self.coefficients[i, parts[j]]
                + self.intercepts[pair]
            )
            if k == 2:
                # Here, and only here, scikit-learn has turned libsvm's sign.
                return margin[:, np.newaxis]
            votes[:, i] += margin >= 0
            votes[:, j] += margin < 0
            margins[:, i] += margin
            margins[:, j] -= margin
        return votes + margins / (3 * (np.abs(margins) + 1))

    def _kernel(self, rows: np.ndarray) -> np.ndarray:
        vectors = self.vectors.astype(np.float64)
        products = rows @ vectors.T
        if self.kernel == "linear":
            return products
        if self.kernel == "poly":
            return (self.gamma * products + COEF0) ** DEGREE
        if self.kernel == "sigmoid":
            return np.tanh(self.gamma * products + COEF0)
        squares = (rows**2).sum(axis=1)[:, np.newaxis] + (vectors**2).sum(axis=1) - 2 * products
        return np.exp(-self.gamma * np.maximum(squares, 0))

    def arrays(self) -> dict[str, np.ndarray]:
        """Every attribute as an array."""
        return {name: np.asarray(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SVM:
        """What `arrays` gave; ValueError, TypeError or KeyError if they do not fit together."""
        values: dict[str, Any] = {name: arrays[name] for name in cls.__dataclass_fields__}
        values["kernel"] = str(values["kernel"])
        values["gamma"] = float(values["gamma"])
        values["n_classes"] = int(values["n_classes"])
        svm = cls(**values)
        k = len(svm.classes)
        shapes = {
            "classes": (k,),
            "counts": (k,),
            "vectors": (int(svm.counts.sum()), svm.vectors.shape[-1]),
            "coefficients": (k - 1, int(svm.counts.sum())),
            "intercepts": (k * (k - 1) // 2,),
            "slopes": (k if k > 2 else 1,),
            "offsets": (k if k > 2 else 1,),
        }
        for name, shape in shapes.items():
            if getattr(svm, name).shape != shape:
                raise ValueError(f"its {name} {getattr(svm, name).shape} should be {shape}")
            if name not in ("classes", "counts") and getattr(svm, name).dtype.kind != "f":
                raise ValueError(f"its {name} are not real numbers")
        _check_integers(svm.classes, "classes", 0, svm.n_classes - 1)
        _check_integers(svm.counts, "counts", 0, len(svm.vectors))
        if svm.kernel not in KERNELS or k < 2 or len(set(svm.classes.tolist())) < k:
            raise ValueError("its kernel or its classes are unknown")
        return svm


@dataclass(frozen=True, eq=False)
class Forest:
    """A trained random forest: the nodes of all trees, one tree after the other.

    Attributes
    ----------
    n_inputs : int
        Length of a row.
    sizes : np.ndarray, (trees,) int64
        Nodes of each tree.
    left, right : np.ndarray, (nodes,) int32
        Children, as positions in their tree; -1 in a leaf.
    inputs : np.ndarray, (nodes,) int32
        Which value of the row a node looks at; it goes left where that is at most its threshold.
    thresholds : np.ndarray, (nodes,) float64
    leaves : np.ndarray, (leaves, classes) float32
        Class probabilities of the leaves, in the order of the nodes.

    Examples
    --------
    >>> rows, targets = np.float32([[0], [1], [5], [6]]), np.array([0, 0, 1, 1])
    >>> fit_forest(rows, targets, 2).predict(np.float32([[0], [6]])).argmax(axis=1)
    array([0, 1])
    """

    n_inputs: int
    sizes: np.ndarray
    left: np.ndarray
    right: np.ndarray
    inputs: np.ndarray
    thresholds: np.ndarray
    leaves: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Length of a row, number of classes."""
        return self.n_inputs, self.leaves.shape[1]

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Class probabilities of each row, (n, in) float32 -> (n, classes) float32.

        The mean of the leaves that the row ends in.
        """
        probabilities = np.zeros((len(rows), self.leaves.shape[1]))
        leaf_numbers = np.cumsum(self.left < 0) - 1
        for end, size in zip(np.cumsum(self.sizes), self.sizes, strict=True):
            tree = slice(end - size, end)
            left, right = self.left[tree], self.right[tree]
            inputs, thresholds = self.inputs[tree], self.thresholds[tree]
            nodes = np.zeros(len(rows), np.intp)
            moving = np.arange(len(rows)) if left[0] >= 0 else np.arange(0)
            while len(moving):
                at = nodes[moving]
                goes_left = rows[moving, inputs[at]] <= thresholds[at]
                at = np.where(goes_left, left[at], right[at])
                nodes[moving] = at
                moving = moving[left[at] >= 0]
            probabilities += self.leaves[leaf_numbers[tree][nodes]]
        return (probabilities / len(self.sizes)).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every attribute as an array."""
        return {name: np.asarray(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Forest:
        """What `arrays` gave; ValueError, TypeError or KeyError if they do not fit together."""
        values: dict[str, Any] = {name: arrays[name] for name in cls.__dataclass_fields__}
        values["n_inputs"] = int(values["n_inputs"])
        forest = cls(**values)
        _check_integers(forest.sizes, "sizes", 1, len(forest.left))
        nodes = int(forest.sizes.sum())
        for name in ("left", "right", "inputs", "thresholds"):
            if getattr(forest, name).shape != (nodes,):
                raise ValueError(f"its {name} are not one for each of its {nodes} nodes")
        if {forest.thresholds.dtype.kind, forest.leaves.dtype.kind} != {"f"}:
            raise ValueError("its thresholds or leaves are not real numbers")
        leaf = forest.left < 0
        if forest.leaves.ndim != 2 or len(forest.leaves) != leaf.sum() or not nodes:
            raise ValueError("its leaves do not fit its nodes")
        own = np.concatenate([np.arange(size) for size in forest.sizes])
        for name in ("left", "right"):
            children = getattr(forest, name)
            _check_integers(children, name, -1, nodes)
            # Children come after their parent: no row can go round in circles.
            inside = (children > own) & (children < np.repeat(forest.sizes, forest.sizes))
            if not np.all(inside[~leaf]) or np.any(children[leaf] != -1):
                raise ValueError(f"its {name} children are not in their tree")
        _check_integers(forest.inputs[~leaf], "inputs", 0, forest.n_inputs - 1)
        return forest


def fit_svm(
    rows: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    classes: int,
    *,
    recipe: SVMRecipe | None = None,
    seed: int = 0,
) -> SVM:
    """Train a support vector machine, and sigmoids that make its scores probabilities.

    The sigmoids are fitted to scores of rows that were held out: the groups are dealt to five
    parts (fewer if a class has fewer groups), each of which a machine trained on the others
    scores. The machine that is kept is trained on all rows.

    Parameters
    ----------
    rows : np.ndarray, (n, D) float32
        Standardised.
    targets, groups : np.ndarray, (n,) int64
        Class and clip of each row. Rows of one clip are held out together.
    classes : int
        Length of the output.
    recipe : SVMRecipe, optional
    seed : int
        Of the dealing.

    Returns
    -------
    svm : SVM

    Raises
    ------
    L3PruneError
        There are fewer than two classes, or a class has one group only.

    Examples
    --------
    >>> rows, targets = np.float32([[0], [6]]), np.array([0, 1])
    >>> fit_svm(rows, targets, targets, 2)
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: class 0 has 1 training clip; an SVM's probabilities need 2 ...
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    recipe = recipe or SVMRecipe()
    check_seed(seed)
    rng = np.random.default_rng(seed)
    present = np.unique(targets)
    if len(present) < 2:
        raise L3PruneError("an SVM needs training clips of two classes; add clips")
    clips = {int(target): np.unique(groups[targets == target]) for target in present}
    for target, numbers in clips.items():
        if len(numbers) < 2:
            raise L3PruneError(
                f"class {target} has 1 training clip; an SVM's probabilities need 2 of each class"
            )
    n_parts = min(CALIBRATION_FOLDS, *map(len, clips.values()))
    parts = np.empty(len(rows), np.int64)
    for target, numbers in clips.items():
        dealt = rng.permutation(np.arange(len(numbers)) % n_parts)
        of_class = targets == target
        parts[of_class] = dealt[np.searchsorted(numbers, groups[of_class])]
    splits = [(np.flatnonzero(parts != i), np.flatnonzero(parts == i)) for i in range(n_parts)]
    variance = float(rows.var(dtype=np.float64))
    gamma = 1 / (rows.shape[1] * variance) if variance else 1.0
    machine = SVC(
        C=recipe.C, kernel=recipe.kernel, tol=recipe.tol, gamma=gamma, degree=DEGREE, coef0=COEF0
    )
    calibrated = CalibratedClassifierCV(machine, method="sigmoid", cv=splits, ensemble=False)
    (fitted,) = calibrated.fit(rows, targets).calibrated_classifiers_
    machine = fitted.estimator
    return SVM(
        kernel=recipe.kernel,
        gamma=gamma,
        classes=machine.classes_.astype(np.int64),
        n_classes=classes,
        vectors=machine.support_vectors_.astype(np.float32),
        counts=machine.n_support_.astype(np.int64),
        coefficients=machine.dual_coef_,
        intercepts=machine.intercept_,
        slopes=np.array([each.a_ for each in fitted.calibrators]),
        offsets=np.array([each.b_ for each in fitted.calibrators]),
    )


def fit_forest(
    rows: np.ndarray,
    targets: np.ndarray,
    classes: int,
    *,
    recipe: ForestRecipe | None = None,
    seed: int = 0,
) -> Forest:
    """Train a random forest.

    Parameters
    ----------
    rows : np.ndarray, (n, D) float32
        Standardised, though that changes nothing but rounding.
    targets : np.ndarray, (n,) int64
    classes : int
        Length of the output.
    recipe : ForestRecipe, optional
    seed : int

    Returns
    -------
    forest : Forest

    Examples
    --------
    >>> rows, targets = np.float32([[0], [6]]), np.array([0, 1])
    >>> fit_forest(rows, targets, 3, recipe=ForestRecipe(trees=7)).shape
    (1, 3)
    """
    from sklearn.ensemble import RandomForestClassifier

    recipe = recipe or ForestRecipe()
    check_seed(seed)
    forest = RandomForestClassifier(recipe.trees, random_state=seed, n_jobs=-1).fit(rows, targets)
    trees = [each.tree_ for each in forest.estimators_]
    left, right = (
        np.concatenate([getattr(tree, f"children_{side}") for tree in trees]).astype(np.int32)
        for side in ("left", "right")
    )
    known = np.concatenate([tree.value[tree.children_left < 0, 0] for tree in trees])
    leaves = np.zeros((len(known), classes), np.float32)
    leaves[:, forest.classes_] = known
    return Forest(
        n_inputs=rows.shape[1],
        sizes=np.array([tree.node_count for tree in trees], np.int64),
        left=left,
        right=right,
        inputs=np.concatenate([tree.feature for tree in trees]).astype(np.int32),
        thresholds=np.concatenate([tree.threshold for tree in trees]),
        leaves=leaves,
    )


def _check_integers(values: np.ndarray, name: str, low: int, high: int) -> None:
    if values.dtype.kind != "i" or values.ndim != 1:
        raise ValueError(f"its {name} are not a list of integers")
    if len(values) and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"its {name} are not in {low} … {high}")
