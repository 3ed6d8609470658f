"""What a step of decoding begins with: of each row its token's embedding, its slot's pages, its age."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.opening.reference import opening_reference

OPENING = Op(
    "opening",
    (
        kernels("opening", "opening_triton"),
        Implementation("reference", opening_reference),
    ),
)


def opening(ids_S, embedding_VD, table_nM, slots_S, ages_S, grows_S):
    """What S rows begin a step with: (x_SD, pages_SM, past_S), tensors of their own.

    ids_S: int64, their newest tokens; below 0 (none could be chosen) counts as 0. embedding_VD: contiguous. table_nM: int32, the
    pages of each slot, slots_S: int32, each row's. ages_S: int32, tokens so far, of which ``past_S`` is a copy; they are then
    **increased in place** by grows_S (int32), for the next step.
    """
    S = len(ids_S)
    if any(one.shape != (S,) for one in (slots_S, ages_S, grows_S)):
        shapes = f"slots {tuple(slots_S.shape)}, ages {tuple(ages_S.shape)} and growth {tuple(grows_S.shape)}"
        raise ValueError(f"{shapes} do not fit {S} ids")
    return OPENING(ids_S.device)(ids_S, embedding_VD, table_nM, slots_S, ages_S, grows_S)
