"""A model in pieces has the gradients of one in one piece."""

import pytest

from tests.train.scale.played import played


@pytest.fixture(scope="module")
def told():
    return played("steps")


@pytest.fixture(scope="module")
def families(told):
    return told["families"]


@pytest.fixture(scope="module")
def kinds(told):
    return told["kinds"]


def test_gradients_of_split_layers_are_those_of_whole_ones(told):
    """Both families, one group of heads and two; recomputed; over four ranks, of which two norm together; beside copies and
    beside pieces. Under autocast products are rounded elsewhere."""
    split = told["split"]
    assert len(split) == 8 and split["pieces"]["spread"] and not split["four"]["spread"]
    for name, one in split.items():
        assert one["dtypes"] == ["torch.float32"], name
        if name != "bf16":
            assert one["error"] < 2e-5 and one["norm"] < 1e-6, (name, one)
    assert split["bf16"]["norm"] < 5e-3


def test_gradients_are_those_of_a_model_in_one_piece(families):
    assert len(families) == 8
    for name, told in families.items():
        assert told["error"] < 2e-5 and told["norm"] < 1e-6, (name, told)


def test_matrices_are_spread_and_vectors_are_whole(families):
    spread = families["zamba2, everything"]["spread"]
    assert "zamba.embedding.weight" in spread and "zamba.layers.1.adapters.q.A.weight" in spread
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in spread} <= {
        "embedding", "in_proj", "out_proj", "qkv", "o", "gate_up", "down", "link", "A", "B",
    }  # fmt: skip
    assert any(name.endswith("x_proj") for name in families["zamba"]["spread"])
    assert not any(name.endswith(("A_log", "D", "dt_bias", "conv_weight")) for name in families["zamba"]["spread"])


def test_a_shared_block_is_gathered_once_a_step(families, kinds):
    """It is called from several layers, in two micro-batches, forward and back; layers are gathered for each of them."""
    for name in ("zamba2, everything", "zamba2, everything layers", "zamba2, everything blocks"):
        gathered = families[name]["gathered"]
        assert gathered["zamba.blocks.0"] == gathered["zamba.blocks.1"] == 1, (name, gathered)
        assert gathered["zamba.layers.2"] == 4
    assert kinds["none"]["gathered"]["zamba.blocks.0"] > 4 and set(kinds["all"]["gathered"].values()) == {1}


def test_gradients_are_float32_where_products_are_bfloat16(kinds):
    assert kinds["bf16"]["dtypes"] == ["torch.float32"] and kinds["bf16"]["error"] < 5e-2


def test_what_is_kept_and_copies_of_pieces_change_no_gradient(told, kinds):
    for one in (kinds["none"], kinds["all"], told["copies"]):
        assert one["error"] < 2e-5 and one["norm"] < 1e-6, one
    assert told["copies"]["spread"] == kinds["none"]["spread"]


def test_whole_matrices_are_worked_on_by_whom_they_fall_to(told):
    ranks = told["ranks"]
    assert [one["rows"] for one in ranks] == [3, 3, 1] and all(one["equal"] and one["norm"] < 1e-6 for one in ranks)
