"""Installation of l3prune; see README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "l3prune/__init__.py").read_text()).group(1)

SPARSE = ["numba>=0.60"]  # compiles the sparse engine's kernels; librosa brings it along
FULL = [
    "tensorflow>=2.21",  # networks and training
    "tf_keras>=2.21",  # Keras 2: what tfmot and MultiWorkerMirroredStrategy work with
    "tensorflow-model-optimization>=0.8.1",  # pruning schedules, quantisation, clustering
    "pandas>=2.0",  # tables
    "scikit-learn>=1.3",  # scalers, SVM and random forest of the classifier
    "h5py>=3.8",  # weight files, read without running what they hold
    "matplotlib>=3.7",  # figures of reports
    "pillow>=9.1",  # image files
    "av>=17",  # PyAV: decodes and encodes videos without an ffmpeg program
    "tensorboard>=2.16",  # training curves; TensorFlow no longer brings it
]
LIVE = ["sounddevice>=0.4.6"]  # microphones, by PortAudio
EXPORT = [
    "ai-edge-litert>=2.0",  # runs LiteRT files: the interpreter that TensorFlow no longer brings
    "onnx>=1.16",  # writes and checks ONNX files
    "onnxruntime>=1.18",  # runs them
]

setup(
    name="l3prune",
    version=VERSION,
    description="Prunes audio embedding networks, retrains them with their zeros intact, "
    "and measures what it did",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["l3prune", "l3prune.*", "classifier", "classifier.*"]),
    package_data={"l3prune": ["published.csv", "class_labels_indices.csv", "page/*"]},
    python_requires=">=3.10",
    # What turns sound into embeddings by packed files; the rest is in the extra "full".
    install_requires=[
        "numpy>=1.24",
        "scipy>=1.10",  # products with mel filterbanks, which are sparse
        "librosa>=0.10",  # mel filterbanks
        "soundfile>=0.12",  # decodes wav, flac, ogg and mp3
        "soxr>=0.3",  # resampling
        "tqdm>=4.60",  # progress bars
        "filelock>=3.12",  # jobs that share a cache wait for each other
        "platformdirs>=3.0",  # the user's cache folder
        "requests>=2.28",  # downloads of published weights
    ],
    extras_require={
        "sparse": SPARSE,
        "full": [*SPARSE, *FULL],
        "export": [*SPARSE, *FULL, *EXPORT],
        "live": LIVE,
        "test": [
            *("pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "ruff>=0.6", "mypy>=1.10"),
            "torch>=2.0",  # writes the checkpoints that l3prune reads without it
        ],
    },
)
