"""Runs that go on with another number of processes."""

import pytest

from tests.train.scale.played import played


def test_checkpoints_go_on_in_another_number_of_processes(tmp_path):
    """2 -> 1 -> 2."""
    told = played("scenes", "divided_anew", str(tmp_path))
    assert told["codes"] == [0, 0, 0, 0, 1]
    assert len(told["two"]) == len(told["one"]) == len(told["again"]) == 9
    for two, one, again in zip(told["two"], told["one"], told["again"]):
        assert one["loss"] == pytest.approx(two["loss"], rel=3e-6) and again["loss"] == pytest.approx(two["loss"], rel=3e-6)
        assert one["tokens"] == again["tokens"] == two["tokens"]
    assert told["two"][:3] == told["one"][:3] and told["one"][:6] == told["again"][:6]
    # a run that starts from the weights, the finished model, a run that is not sharded
    assert told["plain"][0]["loss"] < told["two"][-1]["loss"]
    assert told["same"] and told["weights"] > 20
    assert "checkpoint-9 is in pieces: go on with --set scale.shard=fsdp, on any number of devices" in told["said"]
