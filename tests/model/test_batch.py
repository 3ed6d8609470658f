"""Batches: three ways to say the same, and every wrong way refused in words."""

import pytest
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch


def test_pack_lays_sequences_end_to_end():
    batch = Batch.pack([[5, 6, 7], [8], [9, 10]])
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9, 10] and batch.ids_T.dtype == torch.int64
    assert batch.packing.lengths == (3, 1, 2) and batch.packing.total == 6 and len(batch) == 3


def test_pack_takes_any_sequence_of_numbers():
    assert Batch.pack([range(3), (4, 5)]).ids_T.tolist() == [0, 1, 2, 4, 5]


def test_a_rectangle_is_its_rows_packed():
    rows = torch.arange(6).view(2, 3)
    batch, packed = Batch.rectangle(rows), Batch.pack(rows.tolist())
    assert torch.equal(batch.ids_T, packed.ids_T) and batch.packing.lengths == packed.packing.lengths == (3, 3)


def test_a_rectangle_need_not_be_contiguous():
    assert Batch.rectangle(torch.arange(6).view(3, 2).T).ids_T.tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(
    "ends", [[0, 3, 4, 6], torch.tensor([0, 3, 4, 6]), torch.tensor([0, 3, 4, 6], dtype=torch.int32)], ids=type
)
def test_cumulative_lengths(ends):
    batch = Batch.from_cu_seqlens(torch.arange(6), ends)
    assert batch.packing.lengths == (3, 1, 2)
    assert batch.packing.cu_seqlens().tolist() == [0, 3, 4, 6]


@pytest.mark.parametrize(
    "ends", [[], [0], [6], [0, 5], [0, 7], [1, 6], [0, 3, 3, 6], [0, 4, 2, 6], [0, -1, 6]], ids=lambda ends: str(ends) or "none"
)
def test_cumulative_lengths_that_do_not_fit_are_shown(ends):
    with pytest.raises(ZambaError, match="cu_seqlens .* number of tokens, 6"):
        Batch.from_cu_seqlens(torch.arange(6), ends)


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]], ids=str)
def test_a_sequence_without_tokens_is_refused(sequences):
    with pytest.raises(ZambaError, match="without tokens"):
        Batch.pack(sequences)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 0), (1, 2, 3)], ids=str)
def test_a_rectangle_of_another_shape_is_refused(shape):
    with pytest.raises(ZambaError, match="expected .batch, tokens."):
        Batch.rectangle(torch.zeros(shape, dtype=torch.long))
