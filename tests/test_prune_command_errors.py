"""Bad input to python -m l3prune.pruning: one line on stderr, exit code 2, nothing written."""

import json
import shlex
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import soundfile

from l3prune.activations import DATA_CRITERIA
from l3prune.arguments import FROM_DATA
from l3prune.errors import ParameterError
from l3prune.networks import create_network
from l3prune.options import parse
from l3prune.pruning import main as prune
from l3prune.sensitivity import main as sensitivity
from l3prune.weights import save_network
from tests.commands import (
    RETRAIN,
    SPARSITY,
    process,
    refuse,
    run_folder,
    words,
    write_shard,
)
from tests.conftest import make_sounds, make_tiny

GRADUAL_ONE = ("--layerwise", "--sparsity", "50", "--retrain", "-e", "2", "--mask-schedule")
BY_SCAN = ("--allocation", "sensitivity", "--sensitivity")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to do: give --layerwise, --filterwise, --pattern, --budget, --global-sparsi"),
        (("--sparsity", "50"), "--sparsity is for --layerwise"),
        (("--retrain",), "nothing to do"),
        (("--layerwise", "--sparsity", "0", "50"), "2 sparsities given for 8 convolutions"),
        (("--layerwise", "--sparsity", *["5"] * 9), "9 sparsities given for 8 convolutions"),
        (("--layerwise", "--sparsity", *SPARSITY[1:], "120"), "sparsity 120 is not in percent"),
        (("--layerwise", "--sparsity", "100"), "sparsity 100 is not in percent"),
        (("--layerwise", "--sparsity", *SPARSITY[1:], "nan"), "sparsity nan is not in percent"),
        (("--layerwise", "--sparsity", "-5"), "sparsity -5 is not in percent"),
        (("--layerwise", "--sparsity", "inf"), "sparsity inf is not in percent"),
        (("--layerwise", "--sparsity", "99.99"), "would lose all its weights"),
        (("--global-sparsity", "120"), "sparsity 120 is not in percent"),
        (("--global-sparsity", "nan"), "sparsity nan is not in percent"),
        (("--global-sparsity", "50", "--layerwise"), "drop --layerwise"),
        (("--global-sparsity", "50", "--sparsity", "5"), "not both"),
        (("--layerwise", "--criterion", "best"), "criterion 'best' is unknown"),
        (("--layerwise", "--model-type", "cnn_L3_melspec2"), "holds the network sea64, not mel256"),
        (("--layerwise", "--model-type", "cnn_L3_orig"), "network 'cnn_L3_orig' is unknown"),
        (("--layerwise", "--finetune"), "--finetune is a way to retrain: give --retrain too"),
        (("--layerwise", "-finetune"), "--finetune is a way to retrain: give --retrain too"),
        (("--filterwise", "--retrain"), "--filterwise needs --num_filters, --filter-ratio, --gl"),
        (("--filterwise", "--sparsity", "50"), "--filterwise needs --num_filters"),
        (("--filterwise", "--layerwise", "-filters", "2"), "removes filters: choose"),
        (("--filterwise", "-filters", "2", "2"), "2 counts given for 8 convolutions"),
        (("--filterwise", "-filters", *["2"] * 7, "5"), "5 filters cannot stay of 4"),
        (("--filterwise", "-filters", *["2"] * 7, "0"), "0 filters cannot stay of 4"),
        (("--filterwise", "--filter-ratio", "100"), "filter ratio 100 is not in percent"),
        (("--filterwise", "--filter-ratio", "50", "50"), "2 ratios given for 8"),
        (("--filterwise", "--global-filter-ratio", "-1"), "filter ratio -1 is not in percent"),
        (("--filterwise", "--filter-ratio", "5", "--num_filters", "2"), "not both"),
        (("--filterwise", "--filter-ratio", "50", "--criterion", "magnitude"), "cannot rank whol"),
        (("--filterwise", "--filter-ratio", "50", "--round-to", "0"), "round_to=0 is not"),
        (
            ("--filterwise", "-filters", *["2"] * 8, "--round-to", "2"),
            "without --filter-ratio, --global-filter-ratio or",
        ),
        (("--layerwise", "--num_filters", *["8"] * 8), "--num_filters is for --filterwise"),
        (("--filter-ratio", "50"), "--filter-ratio is for --filterwise"),
        (("--pattern", "2-4"), "pattern '2-4' is not N:M, such as 2:4"),
        (("--pattern", "4:2"), "pattern"),
        (("--layerwise", "--blocks", "4", "--sparsity", "50"), "block '4' is not IxO, such as 4x4"),
        (("--pattern", "2:4", "--blocks", "2x2"), "--blocks goes with --layerwise --sparsity"),
        (("--budget", "watts<=3"), "budget of 'watts' is unknown"),
        (("--budget", "bytes<=10"), "cannot be met"),
        (("--budget", "macs<=1e99999999999999999999"), "unit 'e99999999999999999999' is unknown"),
        (("--budget", "sparsity=1e-99999999999999999999"), "is not understood; write macs<=1G"),
        (("--budget", "sparsity=50", "--allocation", "fair"), "allocation='fair' is unknown"),
        (("--budget", "sparsity=50", "--pattern", "2:4"), "not both"),
        (("--include_layers", "1", "1"), "give 8 zeros and ones, not all of them zero"),
        (("--from-conv-layer", "4"), "from_convlayer=4; allowed: the layers of 5, 6, 7, 8"),
        (("--student", "/nowhere.h5"), "/nowhere.h5"),
        (("--student", "mel256", "--retrain"), "different front ends"),
        (("--include_layers", *"11111111", "--reduction", "pca"), "give --retrain too"),
        (("--layerwise", "--retrain", "--reduction", "ica"), "--reduction 'ica'; allowed: pca"),
        (("--filterwise", "-filters", *["2"] * 8, "--retrain"), "give reduction='pca' or 'linear'"),
        (("--layerwise", "--sparsity", "5", "--criterion", "taylor"), "taylor scores filters"),
        (("--filterwise", "--filter-ratio", "5", "--criterion-windows", "-1"), "windows -1 is not"),
        (("--layerwise", "--mask-schedule", "linear", "--retrain"), "--mask-schedule 'linear'; al"),
        (("--layerwise", "--mask-schedule", "rigl"), "give --retrain too"),
        (("--layerwise", "--ramp"), "--ramp is for --mask-schedule"),
        (("--layerwise", "--frequency", "0", "--retrain"), "--frequency is for --mask-schedule"),
        (("--pattern", "2:4", "--mask-schedule", "rigl", "--retrain"), "not for --pattern"),
        (("--student", "sea64", "--mask-schedule", "rigl", "--retrain"), "needs a sparsity to co"),
        ((*GRADUAL_ONE, "rigl", "--begin-step", "3"), "begin_step is not for the mask schedule"),
        ((*GRADUAL_ONE, "rigl", "--precision", "mixed_float16"), "take mixed_bfloat16"),
        ((*GRADUAL_ONE, "polynomial", "--frequency", "0"), "frequency=0 is not a whole number"),
        ((*GRADUAL_ONE, "polynomial", "--initial-sparsity", "60"), "initial_sparsity=0.6 is above"),
        ((*GRADUAL_ONE, "rigl", "--rigl-alpha", "2"), "alpha=2.0 is not a number in (0, 1]"),
        ((*GRADUAL_ONE, "rigl", "--blocks", "2x2"), "RigL moves single weights"),
        (("--budget", "sparsity=5", "--allocation", "sensitivity"), "--sensitivity DIR"),
        (("--budget", "sparsity=5", "--sensitivity", "EMPTY"), "is for --budget with --allocation"),
        (("--budget", "sparsity=5", *BY_SCAN, "EMPTY"), "has no sensitivity.json"),
        (("--layerwise", "--test-model"), "holds the network sea64, not avc"),
        (("--layerwise", "--retrain", "--num-epochs", "0"), "epochs=0 is not a whole number"),
        (
            ("--layerwise", "--retrain", "--learning-rate", "0"),
            "learning_rate=0.0 is not a positive",
        ),
        (
            ("--layerwise", "--retrain", "--learning-rate", "nan"),
            "learning_rate=nan is not a positive",
        ),
        (("--layerwise", "--retrain", "--min-delta", "nan"), "min_delta=nan"),
        (("--layerwise", "--retrain", "--schedule", "step"), "schedule='step'; allowed"),
        (("--layerwise", "--retrain", "--batch-norm", "x"), "batch_norm='x'; allowed"),
        (("--layerwise", "--retrain", "--seed", "-1"), "seed=-1"),
        (("--layerwise", "--retrain", "--seed", str(2**40)), "seed"),
        (("--layerwise", "--retrain", "-tbs", "0"), "--train-batch-size 0 is not a whole"),
        (("--layerwise", "--retrain", "-vbs", "-1"), "--validation-batch-size -1 is not"),
        (("--layerwise", "--retrain", "-tes", "0"), "--train-epoch-size 0 is not a whole"),
        (("--layerwise", "--retrain", "-ves", "0"), "--validation-epoch-size 0 is not"),
        (("--layerwise", "--hop-size", "0"), "hop_size=0.0 is not a positive"),
        (("--layerwise", "--hop-size", "nan"), "hop_size=nan is not a positive"),
        (("--layerwise", "--run-name", "a/b"), "--run-name 'a/b' is not the name of one folder"),
        (("--layerwise", "--run-name", ".."), "--run-name '..' is not the name of one folder"),
        (("--layerwise", "--run-name", "x" * 300), "cannot make the folder"),
        (("--layerwise", "--cache-dir", "TEXT/cache"), "cannot make the folder"),
        (("--layerwise", "--config", "/nowhere/c.json"), "cannot read /nowhere/c.json"),
        (("--layerwise", "--continue-model-dir", "EMPTY"), "give --retrain too"),
        (("--layerwise", "--retrain", "-cmd", "EMPTY"), "has no model_pruned.h5"),
        (("--layerwise", "--retrain", "-cmd", "/nowhere/run"), "has no model_pruned"),
    ],
)
def test_prune_bad_arguments(place, tmp_path, capsys, options, message):
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").mkdir()
    options = [
        word.replace("TEXT", str(tmp_path / "text")).replace("EMPTY", str(tmp_path / "empty"))
        for word in options
    ]
    line = place.line(tmp_path / "out" / "deep", *options, cache=False)
    refuse(capsys, line, message, tmp_path)


LAYERWISE = ("--layerwise", "--sparsity", "90")
RATIO = ("--filterwise", "--filter-ratio", "50")
COUNTS = ("--filterwise", "--num_filters", *["2"] * 8)
SEA = ("--student", "sea64")
DATA_CRITERION = "--criterion mean_activation, apoz, taylor"

#: Options, what they are given with, and what they would need.
WITHOUT_EFFECT = [
    (("--allocation", "erk"), LAYERWISE, "--budget"),
    (("--allocation", "erk"), ("--filterwise", "--global-filter-ratio", "50"), "--budget"),
    (("--allocation", "erk"), ("--pattern", "2:4"), "--budget"),
    (("--allocation", "erk"), SEA, "--budget"),
    (("--criterion", "l1"), ("--include_layers", *"11101111"), "a choice of what is pruned"),
    (("--criterion", "l1"), ("--from-conv-layer", "7"), "a choice of what is pruned"),
    (("--criterion", "random"), SEA, "a choice of what is pruned"),
    (("--round-to", "2"), SEA, "--filter-ratio, --global-filter-ratio or --layer-ratio"),
    (("--round-to", "2"), LAYERWISE, "--filter-ratio, --global-filter-ratio or --layer-ratio"),
    (("--round-to", "2"), COUNTS, "--filter-ratio, --global-filter-ratio or --layer-ratio"),
    (("--round-to", "2"), ("--filterwise", "--budget", "filters=50%"), "--filter-ratio, --glo"),
    (("--criterion-windows", "8"), RATIO, DATA_CRITERION),
    (("--criterion-windows", "8"), (*RATIO, "--criterion", "l1"), DATA_CRITERION),
    (("--plateau-patience", "2"), (*LAYERWISE, "--retrain", "--schedule", "cosine"), "--schedule"),
    (("--plateau-factor", ".5"), (*LAYERWISE, "--retrain", "--schedule", "cosine"), "--schedule"),
    (("--plateau-factor", ".5"), (*SEA, "--retrain", "--schedule", "cosine"), "--schedule"),
]

#: Options of retraining, which EdgeL3's job lines give whether they retrain or not.
IDLE = [
    *(("--num-epochs", "2"), ("--learning-rate", "1e-3"), ("--train-epoch-size", "4")),
    *(("--validation-epoch-size", "4"), ("--train-batch-size", "4"), ("-vbs", "8")),
    *(("--checkpoint-interval", "2"), ("--early-stopping-patience", "2"), ("--seed", "3")),
    *(("--min-delta", "0"), ("--schedule", "cosine"), ("--batch-norm", "freeze")),
    *(("--plateau-patience", "2"), ("--plateau-factor", "0.5")),
]

#: The same, with words of their own.
REFUSED = [
    (("--reduction", "pca"), LAYERWISE, "--reduction is of the distillation: give --retrain too"),
    (("--continue-model-dir", "x"), LAYERWISE, "goes on with retraining: give --retrain too"),
    (("--sensitivity", "x"), (*LAYERWISE, "--retrain"), "--sensitivity is for --budget with"),
    (("--blocks", "2x2"), RATIO, "--blocks goes with --layerwise --sparsity"),
    (("--blocks", "2x2"), ("--global-sparsity", "50"), "--blocks goes with --layerwise"),
    (("--blocks", "2x2"), ("--budget", "sparsity=50"), "--blocks goes with --layerwise"),
    *(
        (option, (*LAYERWISE, "--retrain"), f"{option[0]} is for --mask-schedule: give one of")
        for option in (
            *(("--frequency", "5"), ("--begin-step", "0"), ("--end-step", "9"), ("--ramp",)),
            *(("--initial-sparsity", "0"), ("--epochs-per-layer", "1"), ("--rigl-alpha", "0.1")),
        )
    ),
    *(
        (("--mask-schedule", "constant"), (*choice, "--retrain"), message)
        for choice, message in (
            (RATIO, "not for --filterwise"),
            (("--pattern", "2:4"), "not for --pattern"),
            (SEA, "needs a sparsity to come to"),
        )
    ),
    (("--mask-schedule", "constant"), LAYERWISE, "--mask-schedule changes masks in retraining"),
]


@pytest.mark.parametrize(("option", "choice", "needed"), WITHOUT_EFFECT)
def test_options_without_effect_are_refused(option, choice, needed):
    line = ["w.h5", "train", "valid", "out", *choice, *option]
    with pytest.raises(ParameterError, match="has no effect without") as found:
        parse(line)
    assert f"has no effect without {needed}" in str(found.value)
    assert parse(line[: -len(option)])


@pytest.mark.parametrize("option", IDLE)
def test_retraining_settings_without_retraining_are_warned_of(option, capsys):
    line = ["w.h5", "train", "valid", "out", *LAYERWISE, *option]
    parse(line)
    shown = "--validation-batch-size" if option[0] == "-vbs" else option[0]
    if shown == "--seed":
        shown = "--random-state"
    assert capsys.readouterr().err == (f"warning: {shown} without effect; --retrain is not given\n")
    parse([*line, "--retrain"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("option", "choice", "message"), REFUSED)
def test_options_of_another_mode_are_refused(option, choice, message):
    line = ["w.h5", "train", "valid", "out", *choice]
    with pytest.raises(ParameterError) as found:
        parse([*line, *option])
    assert message in str(found.value)
    assert parse(line)


@pytest.mark.parametrize(
    "options",
    [
        ("--budget", "sparsity=50", "--allocation", "erk"),
        (*RATIO, "--round-to", "2", "--criterion", "apoz", "--criterion-windows", "8"),
        (*RATIO, "--criterion", "taylor", "--validation-batch-size", "8"),
        ("--filterwise", "--global-filter-ratio", "50", "--round-to", "2"),
        (*SEA, "--seed", "3"),
        ("--include_layers", *"11101111", "--seed", "3", *LAYERWISE, "--criterion", "random"),
        (*LAYERWISE, "--retrain", "--seed", "3", "--plateau-patience", "2", "-e", "2"),
        # What an option does without being given is no contradiction.
        (*LAYERWISE, "--allocation", "uniform", "--round-to", "1", "--num-epochs", "300"),
    ],
)
def test_options_with_effect_are_taken(options):
    assert parse(["w.h5", "train", "valid", "out", *options])


def test_the_criteria_from_data_are_known():
    assert sorted(FROM_DATA) == sorted(DATA_CRITERIA)


@pytest.mark.slow
def test_a_huge_batch_is_refused_before_training(place, tmp_path, capsys):
    message = f"--train-batch-size 13 is more than the 12 windows in {place.train}; give at most"
    line = place.line(tmp_path / "out", *LAYERWISE, "--retrain", "-e", "1", "--quiet")
    refuse(capsys, [*line, "-tbs", "13"], message, tmp_path)
    # A last batch of fewer windows is as good in validation.
    more = ("-tbs", "12", "-vbs", "1000000", "--run-name", "run")
    assert prune([*line, *more]) == 0
    small = ("-tbs", "12", "-vbs", "5", "--run-name", "small")
    assert prune([*line, *small]) == 0
    losses = [
        json.loads((run_folder(tmp_path / "out", name=name) / "report.json").read_text())
        for name in ("run", "small")
    ]
    assert losses[0]["retrained"] == pytest.approx(losses[1]["retrained"], rel=1e-4)


@pytest.mark.parametrize("budget", ["macs<=1e99999999999999999999", "sparsity=1e-9999999999999999"])
def test_a_scan_refuses_numbers_beyond_all(place, tmp_path, capsys, budget):
    line = words(place.net, place.valid, tmp_path / "scan", "--budget", budget)
    assert sensitivity(line) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: budget ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object of options"),
        ('"x"', "is not a JSON object of options"),
        ('{"sparsities": [1]}', "option 'sparsities' is unknown"),
        ('{"help": true}', "option 'help' is unknown"),
        ('{"config": "c.json"}', "option 'config' is unknown"),
        ('{"num_epochs": "many"}', "num_epochs='many' is not a whole number"),
        ('{"num_epochs": 2.5}', "num_epochs=2.5 is not a whole number"),
        ('{"num_epochs": true}', "num_epochs=True is not a whole number"),
        ('{"num_epochs": [1]}', "num_epochs=[1] is not a whole number"),
        ('{"learning_rate": "1e-3"}', "learning_rate='1e-3' is not a number"),
        ('{"learning_rate": -1}', "learning_rate=-1.0 is not a positive number"),
        ('{"sparsity": ["a"]}', "sparsity=['a'] is not a number"),
        ('{"sparsity": []}', "sparsity=[] has no values"),
        ('{"sparsity": [NaN]}', "sparsity nan is not in percent"),
        ('{"sparsity": [120]}', "sparsity 120 is not in percent"),
        ('{"retrain": "yes"}', "retrain='yes' is not true or false"),
        ('{"criterion": ["l1"]}', "criterion=['l1'] is not a text"),
        ('{"finetune": true}', "--finetune is a way to retrain: give --retrain too"),
        ('{"weight_path": 3.5}', "weight_path=3.5 is not a text"),
    ],
)
def test_bad_config(place, tmp_path, capsys, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    refuse(capsys, place.line(tmp_path / "out", "--config", path, "--layerwise"), message, tmp_path)


def text_audio(folder):
    folder.mkdir()
    (folder / "a.wav").write_text("text")


def one_text_among_audio(folder):
    make_sounds(folder)
    (folder / "zz.wav").write_text("text")


def empty_audio(folder):
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(0), 8000)


def truncated_shard(folder):
    path = write_shard(folder / "a.h5") / "a.h5"
    path.write_bytes(path.read_bytes()[:4000])


DATA = {
    "missing": (lambda folder: None, "no such folder"),
    "a file": (lambda folder: folder.write_text("x"), "no such folder"),
    "empty": (lambda folder: folder.mkdir(), "holds no audio files"),
    "text as wav": (text_audio, "a.wav cannot be decoded as audio"),
    "one text as wav": (one_text_among_audio, "zz.wav cannot be decoded as audio"),
    "no samples": (empty_audio, "a.wav has no samples"),
    "no audio": (lambda folder: write_shard(folder / "a.h5", name="x"), "has no dataset 'audio'"),
    "truncated": (truncated_shard, "is not an HDF5 shard, or is damaged"),
    "dtype": (lambda folder: write_shard(folder / "a.h5", dtype=np.float32), "'audio' is float32"),
    "rate": (lambda folder: write_shard(folder / "a.h5", rate=48000), "'audio' is int16 of shape"),
    "no windows": (lambda folder: write_shard(folder / "a.h5", windows=0), "holds no windows"),
    "mixed": (
        lambda folder: shutil.copy(
            write_shard(make_sounds(folder) / "a.h5") / "a.h5", folder / "b.h5"
        ),
        "holds both audio files",
    ),
}


@pytest.mark.parametrize(
    ("side", "kind"),
    [
        *(("train", kind) for kind in DATA),
        # By then the training data are known to be good, but not decoded yet.
        *(("validation", kind) for kind in ("empty", "one text as wav", "truncated")),
    ],
)
def test_bad_data(place, tmp_path, capsys, kind, side):
    make, message = DATA[kind]
    bad = tmp_path / "bad"
    make(bad)
    sides = [bad, place.valid] if side == "train" else [place.train, bad]
    line = words(place.net, *sides, tmp_path / "out", *RETRAIN, "-e", "2")
    refuse(capsys, line, message, tmp_path)


def another_network(path):
    save_network(create_network("sea64", filters=[4] * 7 + [5]), path)
    with h5py.File(path, "r+") as file:
        description = json.loads(file.attrs["l3prune"])
        description["arguments"]["filters"] = [4] * 8
        file.attrs["l3prune"] = json.dumps(description)


def unknown_widths(path):
    save_network(create_network("sea64", filters=[4] * 8), path)
    with h5py.File(path, "r+") as file:
        del file.attrs["l3prune"]


def nan_weights(path):
    network = make_tiny()
    network.get_layer("conv_3").bias.assign([np.nan] * 4)
    save_network(network, path)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: None, (), "no such weight file"),
        (lambda path: path.mkdir(), (), "no such weight file"),
        (lambda path: path.write_text("text"), (), "is not an HDF5 weight file, or is damaged"),
        (lambda path: path.write_bytes(b""), (), "is not an HDF5 weight file, or is damaged"),
        (lambda path: write_shard(path), (), "no Keras weight file: it has no layer_names"),
        (another_network, (), "claims [4, 4, 4, 4, 4, 4, 4, 4] filters and holds"),
        (unknown_widths, (), "holds no known network"),
        (unknown_widths, ("-mt", "sea64"), "these are weights for another network"),
        (nan_weights, (), "has NaN or infinite values"),
    ],
    ids=["missing", "folder", "text", "empty", "shard", "another", "unknown", "widths", "nan"],
)
def test_bad_weights(place, tmp_path, capsys, make, options, message):
    path = tmp_path / "net.h5"
    make(path)
    line = words(path, place.train, place.valid, tmp_path / "out", *RETRAIN, "-e", "2", *options)
    refuse(capsys, line, message, tmp_path)


def test_unwritable_output(place, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        for cache in (True, False):
            line = place.line(out, *RETRAIN, "-e", "2", cache=cache)
            refuse(capsys, line, "cannot make the folder", tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["w.h5"],
        ["w.h5", "t", "v"],
        ["w.h5", "t", "v", "o", "x"],
        ["w.h5", "t", "v", "o", "--sparsity", "abc"],
        ["w.h5", "t", "v", "o", "--sparsity"],
        ["w.h5", "t", "v", "o", "--num-epochs", "1.5"],
        ["w.h5", "t", "v", "o", "--layer"],
    ],
)
def test_prune_usage(line, capsys):
    with pytest.raises(SystemExit) as end:
        prune(line)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith("usage: python -m l3prune.pruning ")
    assert error[1].startswith("python -m l3prune.pruning: error: ")


def test_bad_input_as_a_process(place, tmp_path):
    line = (*RETRAIN, "-e", "2", "--sparsity", "120")
    ended = process("l3prune.pruning", *place.line(tmp_path / "out", *line))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "error: sparsity 120 is not in percent, from 0 to below 100\n"
    assert not (tmp_path / "out").exists()


def test_a_reader_that_ends_early_is_no_traceback():
    """python -m l3prune.models list | head -1"""
    code = "import sys; from l3prune.errors import command\n"
    code += "@command\ndef main(argv=None):\n"
    code += "    for _ in range(100000):\n        print('a line of a long table')\n"
    code += "sys.exit(main())"
    line = (
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1; echo ${{PIPESTATUS[0]}}"
    )
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["a line of a long table", "141"]
    assert ended.stderr == ""
