"""The design's rules, checked on the source: imports, what is loaded, what is documented."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import l3prune

ROOT = Path(l3prune.__file__).parent.parent

#: A module may import from lower levels, and within its own package. `commands` come last.
LEVELS = [
    # No TensorFlow, ever.
    {"errors", "medians"},
    {"files", "extensions", "quiet", "checks", "parallel"},
    {"pickles"},
    {
        "audio",
        "criteria",
        "log_mel",
        "torch_files",
        "array_files",
        "labels",
        "download",
        "curves",
        "runs",
        "interruption",
        "c_header",
        "export_formats",
        "model_card",
    },
    {"configs", "descent", "metrics"},
    {"recipes"},
    {"arguments"},
    {"options"},
    {"plan", "datasets", "published", "sparse", "streaming"},
    {"web"},
    {"windows", "filterwise", "patterns", "onnx_file"},
    {"allocation", "labelled"},
    {"budget", "augmentation", "segments"},
    # Networks, read and written.
    {"layers", "layouts", "optimizers"},
    {"networks", "channels", "packed_clips"},
    {"graph"},
    {"surgery", "detection", "complexity", "activations"},
    {"batches", "devices", "dropout", "slimming", "ranking"},
    {"zero_filters"},
    {"weights", "gradual", "scan", "timing", "batch_norm", "litert", "panns", "disguise"},
    {"checkpoints"},
    {"training", "avc", "models", "pruner", "rigl", "sizes"},
    {"reduction", "schedules", "engines", "speed"},
    {"distillation", "correspondence", "quantization", "classification"},
    {"quantized_training"},
    {"evaluation", "embedding", "exports"},
    {"images", "edgel3", "comparison", "corpus", "tagging"},
    {"retraining"},
    {"label_training", "lambda_path"},
    {"methods"},
    {"openl3", "views"},
    {
        "pruning",
        "sensitivity",
        "compare",
        "train",
        "train_avc",
        "avc_data",
        "export",
        "convert",
        "quantize",
        "tag",
        "live",
        "__main__",
    },
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
WITHOUT_TENSORFLOW = set().union(*LEVELS[:12])
COMMANDS = LEVELS[-1]

#: Top-level names that start TensorFlow.
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"}

#: What the classifier may know of l3prune.
FOR_CLASSIFIER = {"embedding", "datasets", "audio", "errors", "files", "interruption", "quiet"}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), path)


def imports(path):
    """Dotted names that a module imports, anywhere in it, submodules in `from` imports resolved."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                file = ROOT / whole.replace(".", "/")
                names.add(
                    whole if file.is_dir() or file.with_suffix(".py").is_file() else node.module
                )
    return names


def room(module):
    """The module or subpackage of l3prune that a dotted name is in; None for l3prune itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


L3PRUNE = [path for path in sources("l3prune") if path != ROOT / "l3prune" / "__init__.py"]
BOTH = [*sources("l3prune"), *sources("classifier")]


def names_of(paths):
    return [module_name(path) for path in paths]


def test_every_module_has_a_level():
    rooms = {room(module_name(path)) for path in L3PRUNE} | {"__main__"}
    assert rooms == set(LEVEL), "add the new module to LEVELS, at the place the design gives it"


@pytest.mark.parametrize("path", L3PRUNE, ids=names_of(L3PRUNE))
def test_imports_go_down_only(path):
    own = room(module_name(path))
    for name in imports(path):
        assert not name.startswith("classifier"), f"{path} imports {name}"
        if not name.startswith("l3prune") or room(name) in (None, own):
            continue
        assert LEVEL[room(name)] < LEVEL[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", BOTH, ids=names_of(BOTH))
def test_commands_are_imported_by_no_module(path):
    for name in imports(path):
        if name.startswith("l3prune"):
            assert room(name) not in COMMANDS, f"{path} imports {name}"
        assert name != "classifier.__main__", f"{path} imports {name}"


def test_the_classifier_knows_little_of_l3prune():
    for path in sources("classifier"):
        rooms = {room(name) for name in imports(path) if name.split(".")[0] == "l3prune"}
        assert rooms - {None} <= FOR_CLASSIFIER, path


def test_low_levels_never_name_tensorflow():
    for path in L3PRUNE:
        # `quiet` exists to import it, when it is called.
        if room(module_name(path)) in WITHOUT_TENSORFLOW - {"quiet"}:
            assert not {name.split(".")[0] for name in imports(path)} & TENSORFLOW, path
    assert {name.split(".")[0] for name in imports(ROOT / "l3prune" / "__init__.py")} <= {
        "__future__",
        "importlib",
        "typing",
    }


def loaded_by(code):
    """Names in sys.modules after running code in a new process."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_low_levels_load_no_tensorflow():
    low = [module_name(path) for path in L3PRUNE if room(module_name(path)) in WITHOUT_TENSORFLOW]
    assert {"l3prune.audio", "l3prune.windows", "l3prune.datasets.synthetic"} <= set(low)
    assert not loaded_by(f"import l3prune, {', '.join(low)}, classifier") & TENSORFLOW


def test_asking_for_a_low_name_loads_no_tensorflow():
    code = "import l3prune; dir(l3prune); l3prune.PruningPlan, l3prune.ParameterError"
    assert not loaded_by(code) & TENSORFLOW


@pytest.mark.parametrize(
    "line",
    [
        "l3prune.__main__",
        "l3prune.models",
        "l3prune.models fetch",
        "l3prune.pruning",
        "l3prune.sensitivity",
        "l3prune.compare",
        "l3prune.export",
        "l3prune.convert",
        "l3prune.datasets.synthetic",
        "l3prune.datasets.scenes",
        "l3prune.train",
        "l3prune.train_avc",
        "l3prune.quantize",
        "l3prune.tag",
        "l3prune.live",
        "l3prune.avc_data",
        "l3prune.avc_data subsets",
        "l3prune.avc_data shards",
        "l3prune.avc_data inspect",
        "classifier.__main__",
        "classifier.__main__ features",
        "classifier.__main__ train",
        "classifier.__main__ cv",
        "classifier.__main__ predict",
    ],
)
def test_help_loads_no_tensorflow(line):
    module, *words = line.split()
    code = f"""
from {module} import main
try:
    main({[*words, "--help"]})
except SystemExit as end:
    assert end.code == 0
else:
    raise AssertionError("--help did not end the command")
"""
    # Nor anything else that is slow to load.
    slow = {"librosa", "sklearn", "pandas", "scipy", "matplotlib", "h5py", "soundfile"}
    assert not loaded_by(code) & (TENSORFLOW | slow)


def test_every_public_name_resolves():
    for name, home in l3prune._HOMES.items():
        value = getattr(l3prune, name)
        assert value is getattr(importlib.import_module(home), name)
        assert value.__module__.startswith("l3prune"), name
    assert set(l3prune.__all__) == {"__version__", *l3prune._HOMES}
    assert dir(l3prune) == sorted(l3prune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        l3prune.nothing  # noqa: B018  # the access is the test


@pytest.mark.parametrize("path", BOTH, ids=names_of(BOTH))
def test_nothing_in_a_file_is_run(path):
    for name in imports(path):
        assert name.split(".")[0] not in {"pickle", "dill", "joblib", "cloudpickle", "marshal"}
    for node in ast.walk(parse(path)):
        where = f"{path} line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, where
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle":
                    assert isinstance(keyword.value, ast.Constant), where
                    assert keyword.value.value is False, where
                if keyword.arg == "shell":
                    raise AssertionError(where)
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"read_pickle", "system"}, where
            # Keras's readers of whole models run code that a file holds.
            if node.attr in {"load_model", "model_from_json", "model_from_config"}:
                assert "keras" not in ast.unparse(node), where


def undocumented(path):
    """Public functions and classes of a module without an Examples section."""
    for node in parse(path).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            continue
        # The ten generators are members of one registry and called by it alone; a protocol
        # cannot be made.
        marks = {ast.unparse(each) for each in [*node.decorator_list, *getattr(node, "bases", [])]}
        if marks & {"sound_class", "Protocol"}:
            continue
        text = ast.get_docstring(node) or ""
        if "Examples\n--------\n" not in text or ">>>" not in text:
            yield node.name


@pytest.mark.parametrize("path", BOTH, ids=names_of(BOTH))
def test_public_names_have_examples(path):
    assert list(undocumented(path)) == []


@pytest.mark.parametrize("path", BOTH, ids=names_of(BOTH))
def test_modules_and_public_methods_have_docstrings(path):
    tree = parse(path)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name}"
