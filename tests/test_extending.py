"""docs/extending.md does what it says: its files, its commands, its messages."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomllib

from l3prune import criteria, extensions, networks
from l3prune.criteria import ConvWeights, criterion, get_criterion, list_criteria
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import create_network, list_networks, network, network_config, takes
from l3prune.pruner import Wish, prune
from l3prune.weights import load_network, save_network
from tests.label_corpora import make_corpus

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`\n\n```\w+\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].replace("\\\n", " ").splitlines()
MODULES = ("my_criteria", "my_networks")


def test_the_page_has_these_files():
    assert set(FILES) == {"pyproject.toml", "my_criteria.py", "my_networks.py", "compare.json"}
    assert [line.split()[2] for line in COMMANDS] == [
        *("pip", "l3prune.train", "l3prune.pruning", "l3prune.compare")
    ]


def write_package(folder, files=FILES):
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def describe(folder, pyproject=FILES["pyproject.toml"]):
    """What installing the package would leave beside its modules."""
    project = tomllib.loads(pyproject)["project"]
    info = folder / "my_sounds-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a package known to this process, and forgotten afterwards."""

    def install(files=FILES):
        describe(write_package(tmp_path, files), files["pyproject.toml"])
        monkeypatch.syspath_prepend(tmp_path)
        extensions._found.cache_clear()
        return tmp_path

    yield install
    extensions._found.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)
    for registry in (criteria.CRITERIA, networks._BUILDERS, networks._WIDTHS, networks._CLAIMED):
        for name in ("peak", "little", "other"):
            registry.pop(name, None)


def changed(name, old, new):
    assert old in FILES[name]
    return {**FILES, name: FILES[name].replace(old, new)}


def test_names_are_known_and_nothing_is_imported(installed):
    assert "peak" not in list_criteria()
    installed()
    assert "peak" in list_criteria()
    assert "little" in list_networks()
    assert not {*MODULES} & sys.modules.keys()


def test_the_criterion(installed):
    installed()
    kernel = np.array([1.0, -5.0, 2.0, 3.0]).reshape(1, 2, 1, 2)
    assert get_criterion("peak")(ConvWeights(kernel)).tolist() == [2.0, 5.0]
    assert "my_networks" not in sys.modules


def test_the_network_is_built_pruned_saved_and_loaded(installed, tmp_path):
    installed()
    assert takes("little", "classes")
    whole = create_network("little", classes=3)
    half, plan = prune(whole, Wish(filterwise=True, amount=0.5, criterion="peak"))
    kernel = whole.get_layer("conv_2").kernel.numpy()
    highest = np.sort(np.argsort(np.abs(kernel).max(axis=(0, 1, 2)))[-8:])
    np.testing.assert_array_equal(np.flatnonzero(plan["conv_2"]), highest)
    assert network_config(half).arguments == {"filters": [4, 8], "classes": 3}
    save_network(half, tmp_path / "half.h5")
    again = load_network(tmp_path / "half.h5")
    for weight, other in zip(half.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.slow
def test_the_commands_with_the_package_installed_by_pip(tmp_path):
    write_package(tmp_path)
    make_corpus(tmp_path / "ESC-10")
    target = tmp_path / "installed"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{target}"}
    offline = ("--quiet", "--no-deps", "--no-build-isolation", "--target", str(target))
    for line in COMMANDS:
        words = [sys.executable, *shlex.split(line)[1:]]
        ended = subprocess.run(
            [*words, *(offline if "pip" in words else ())],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{line}: {ended.stderr}"
        # What is imported is what was installed, not what lies in the folder.
        for name in MODULES:
            (tmp_path / f"{name}.py").unlink(missing_ok=True)
    (report,) = tmp_path.glob("out/embedding/*/*/little/half/report.json")
    assert json.loads(report.read_text())["pruned"]["parameters"] < 8 * 9 * 16
    assert "| filterwise peak | 50 |" in (tmp_path / "compared" / "methods.md").read_text()


# Messages.


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("my_criteria.py", "import numpy", "import nompy", "cannot be loaded: ModuleNotFoundError"),
        ("my_criteria.py", "def peak", "def top", "cannot be loaded: AttributeError"),
        ("my_criteria.py", "@criterion\n", "", "registers nothing of this name; decorate a func"),
    ],
)
def test_a_criterion_that_cannot_be_loaded(installed, name, old, new, message):
    installed(changed(name, old, new))
    with pytest.raises(L3PruneError, match=message) as caught:
        get_criterion("peak")
    assert "package my-sounds" in str(caught.value)


def test_a_network_that_registers_another_name(installed):
    installed(changed("my_networks.py", '@network("little"', '@network("other"'))
    with pytest.raises(ParameterError, match=r"little.*registers nothing of this name"):
        create_network("little", classes=2)


def test_a_network_that_cannot_be_imported_hinders_no_other(installed):
    installed(changed("my_networks.py", "import tf_keras", "import tf_kerass"))
    assert create_network("sea64").name == "sea64"
    with pytest.raises(L3PruneError, match=r"'little' .* cannot be loaded: ModuleNotFoundError"):
        create_network("little", classes=2)


def test_a_weight_file_of_a_network_without_claimed_widths(installed, tmp_path):
    installed(changed("my_networks.py", ", claimed=claimed", ""))
    save_network(create_network("little", classes=2), tmp_path / "a.h5")
    with pytest.raises(L3PruneError, match=r"'little', which does not say how wide it is"):
        load_network(tmp_path / "a.h5")


def test_a_weight_file_of_a_network_that_is_not_installed(installed, tmp_path):
    folder = installed()
    save_network(create_network("little", classes=2), tmp_path / "a.h5")
    for registry in (networks._BUILDERS, networks._WIDTHS, networks._CLAIMED):
        registry.pop("little")
    (folder / "my_sounds-0.1.dist-info" / "entry_points.txt").unlink()
    extensions._found.cache_clear()
    with pytest.raises(L3PruneError, match=r"'little'.*is the package installed that adds it"):
        load_network(tmp_path / "a.h5")


def test_names_are_taken_once():
    def l1(weights):
        return weights.kernel

    with pytest.raises(ParameterError, match=r"'l1' of tests.* is there already, in l3prune"):
        criterion(l1)
    list_networks()
    with pytest.raises(
        ParameterError, match=r"'dcase2021' of tests.* is there already, in l3prune"
    ):
        network("dcase2021")(l1)
