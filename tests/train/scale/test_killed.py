"""Runs of several processes that are killed."""

from tests.train.scale.played import played


def test_kill_9_changes_no_loss(tmp_path):
    told = played("scenes", "going_on", str(tmp_path))
    assert told["codes"] == [0, 0] and len(told["calm"]) == 9
    assert told["killed"] == told["calm"]  # bit for bit
    assert told["torn"][1] and told["left"] == ["checkpoint-6", "checkpoint-9", "log.jsonl", "model", "recipe.json"]
