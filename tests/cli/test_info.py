"""``info``: what a model is, for people and as JSON; published models without their files."""

import json

import pytest

from tests.llm.tiny import CONFIG
from zamba_lm.cli.info import _bytes
from zamba_lm.ops import dispatch

PUBLISHED = {"Zamba-7B-v1": "7.2325 B", "Zamba2-1.2B": "1.2151 B", "Zamba2-2.7B": "2.6622 B", "Zamba2-7B": "7.3567 B"}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("spelled", ["{}", "Zyphra/{}"])
def test_published_models_need_no_download(run, name, spelled):
    result = run("info", spelled.format(name), "--device", "cpu")
    assert result.code == 0 and f"({PUBLISHED[name]})" in result.out and result.err == ""


def test_json_holds_exact_numbers(run, folder):
    result = run("info", "--model", folder, "--json", "--device", "cpu")
    facts = json.loads(result.out)
    assert facts["parameters"] == CONFIG.n_params() and facts["weights_read_per_token"] == CONFIG.weights_read_per_token()
    assert (
        facts["weight_bytes"] == 4 * facts["parameters"]
        and facts["weight_bytes_read_per_token"] == 4 * facts["weights_read_per_token"]
    )
    assert facts["kv_bytes_per_token"] == 2 * 2 * 64 * 4 and facts["ssm_state_bytes"] == 3 * 64 * 8 * 4
    assert facts["config"]["hybrid_layers"] == [1, 2] and facts["config"]["dt_limit"] == [0.0, None]
    assert [tuple(row.values()) for row in facts["ops"]] == dispatch.table("cpu")


def test_for_people_every_operation_says_which_implementation_and_why(run, folder):
    result = run("info", folder, "--device", "cpu")
    lines = [line.split() for line in result.out.splitlines()]
    for op, implementation, why in dispatch.table("cpu"):
        assert [op, implementation, *why.split()] in lines
    assert "zamba2 (Mamba-2 mixers)" in result.out and f"{CONFIG.n_params():,}" in result.out


def test_overrides_show_what_would_be(run):
    result = run("info", "zamba2-2.7b", "--override", "max_positions=65536", "--device", "cpu")
    assert "65,536 tokens" in result.out


@pytest.mark.parametrize("name", ["zamba-7b-v1", "Zyphra/Zamba-7B-v1"])
def test_a_shape_that_is_built_in_has_no_revisions(run, name):
    result = run("info", name, "--revision", "iter2500")
    assert result.code == 1 and result.out == "" and result.err.count("\n") == 1
    assert result.err.startswith(f"error: {name} is built in") and "leave --revision iter2500 out" in result.err


def test_a_model_that_is_nowhere_is_one_line(run):
    result = run("info", "zamba2-2.8b")
    assert (
        result.code == 1
        and result.err.startswith("error: ")
        and result.err.count("\n") == 1
        and "zamba2-2.7b" in result.err.lower()
    )


@pytest.mark.parametrize(
    ("n", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**60, "1048576.0 TiB")],
)
def test_bytes_are_told_in_binary_units(n, shown):
    assert _bytes(n) == shown
