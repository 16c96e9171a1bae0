"""Budgets of milliseconds, against a clock that tells time by the MACs that are left."""

import json

import numpy as np
import pytest

from l3prune import graph, speed
from l3prune.budget import meet, parse_budget
from l3prune.complexity import layer_costs
from l3prune.errors import ParameterError
from l3prune.networks import create_network
from l3prune.pruner import Wish, prune
from l3prune.pruning import CONFIG, PRUNED
from l3prune.pruning import main as prune_command
from l3prune.sparse import SparseModel
from l3prune.sparse.plan import plan
from l3prune.speed import Measured, meet_milliseconds
from l3prune.weights import load_network


@pytest.fixture(scope="module")
def network():
    return create_network("sea64", filters=[8] * 8)


@pytest.fixture
def clock(monkeypatch):
    """Half a millisecond, and one for each 100,000 MACs; what it was asked for."""
    asked = []

    def macs_of(model):
        if isinstance(model, SparseModel):
            return sum(operation.macs for operation in plan(model.program, 4))
        return graph.count_macs(model)[0]

    def latency(networks, *, rounds):
        ((name, model),) = networks.items()
        asked.append(model)
        milliseconds = 0.5 + macs_of(model) / 1e5
        # The median counts: a round that something disturbed does not.
        return {name: np.array([milliseconds] * (rounds - 1) + [1000.0])}

    monkeypatch.setattr(speed, "latency", latency)
    return asked


@pytest.mark.parametrize("filterwise", [False, True])
@pytest.mark.parametrize("limit", [12, 20, 30])
def test_as_many_macs_as_are_fast_enough(network, clock, filterwise, limit):
    wish = Wish(budget=f"ms<={limit}", filterwise=filterwise)
    found = meet_milliseconds(network, wish)
    assert found.engine == ("dense" if filterwise else "sparse")
    assert {isinstance(model, SparseModel) for model in clock} == {not filterwise}
    assert len(clock) <= 11
    macs = int(found.budget.removeprefix("macs<="))
    # 3 % below at most; whole filters of eight come less near.
    assert (0.8 if filterwise else 0.96) * limit <= found.milliseconds <= limit
    pruned, _ = prune(network, Wish(budget=found.budget, filterwise=filterwise))
    left = graph.count_macs(pruned)[0 if filterwise else 1]
    assert left <= macs
    assert 0.5 + left / 1e5 <= limit


def test_a_network_that_is_fast_enough_stays_whole(network, clock):
    found = meet_milliseconds(network, Wish(budget="ms<=1000"))
    assert len(clock) == 1
    pruned, _ = prune(network, Wish(budget=found.budget))
    assert graph.count_macs(pruned)[1] == graph.count_macs(network)[1]


def test_zeros_that_are_there_count(network, clock):
    sparse, _ = prune(network, Wish(amount=0.9))
    found = meet_milliseconds(sparse, Wish(budget="ms<=20"))
    assert len(clock) == 1
    again, _ = prune(sparse, Wish(budget=found.budget))
    assert graph.count_macs(again)[1] == graph.count_macs(sparse)[1]


def test_what_cannot_be_met(network, clock, monkeypatch):
    with pytest.raises(ParameterError, match=r"ms<=0\.4 cannot be met layerwise: .* MACs"):
        meet_milliseconds(network, Wish(budget="ms<=0.4"))
    with pytest.raises(ParameterError, match=r"ms<=0\.51 cannot be met filterwise: .* is too"):
        meet_milliseconds(network, Wish(budget="ms<=0.51", filterwise=True))
    with pytest.raises(ParameterError, match="criterion taylor needs data each time"):
        meet_milliseconds(network, Wish(budget="ms<=9", filterwise=True, criterion="taylor"))
    with pytest.raises(ParameterError, match="budget macs<=9 is not of milliseconds"):
        meet_milliseconds(network, Wish(budget="macs<=9"))
    with pytest.raises(ParameterError, match="ms<=20 is measured, not counted"):
        meet(parse_budget("ms<=20"), layer_costs(network))
    with pytest.raises(ParameterError, match=r"budget ms=: ms is compared by <= only"):
        parse_budget("ms=20")


@pytest.mark.parametrize(
    "measured",
    [
        None,
        [],
        {},
        {"budget": "macs<=9", "milliseconds": 1.0},
        {"budget": "macs<=9", "milliseconds": "1", "engine": "sparse"},
        {"budget": "macs<=9", "milliseconds": 1.0, "engine": "sparse", "more": 1},
    ],
)
def test_a_damaged_record_is_no_budget(measured):
    with pytest.raises(ParameterError, match=r"run/config\.json has no measured budget"):
        Measured.from_record({"measured": measured}, "run/config.json")
    with pytest.raises(ParameterError, match="no measured budget"):
        Measured.from_record(measured, "run/config.json")


@pytest.mark.slow
def test_the_command(place, tmp_path, clock, capsys, monkeypatch):
    limit = 6
    options = ("--layerwise", "--budget", f"ms<={limit}", "--retrain", "--num-epochs", "1")
    options += ("--train-batch-size", "4", "--train-epoch-size", "1", "--run-name", "fast")
    line = place.line(tmp_path / "out", *options, "--quiet")
    assert prune_command(line) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"--budget ms<={limit}: ")
    (run,) = (path.parent for path in tmp_path.rglob(CONFIG))
    measured = Measured.from_record(json.loads((run / CONFIG).read_text()), run)
    assert said == f"--budget ms<={limit}: {measured}"
    assert limit * 0.9 <= measured.milliseconds <= limit
    weights = load_network(run / PRUNED)
    # A run that goes on does not measure again, when the machine may be slower.
    count = len(clock)
    again = [*line, "--continue-model-dir", str(run)]
    again[again.index("--run-name") : again.index("--run-name") + 2] = []
    assert prune_command([*again, "--num-epochs", "2"]) == 0
    assert len(clock) == count
    left = graph.count_macs(load_network(run / "model_latest.h5"))[1]
    assert left == graph.count_macs(weights)[1] <= int(measured.budget.removeprefix("macs<="))
