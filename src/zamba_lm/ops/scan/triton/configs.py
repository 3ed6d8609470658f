"""Launch configurations, chosen by a model of the issue rate and not yet by measurement; any GPU runs them."""

KEEP = 64  # tokens between the states that the forward pass keeps for the backward pass
TILE = 8  # tokens of one program of the gradient kernel
ADJOINT_LANES = 4  # lanes that share a channel in the adjoint kernel
LANES = 2  # the same in the gradient kernel
BLOCK = 2  # of a lane's state numbers that the gradient kernel works on at once


def forward(warps: int, schedulers: int) -> dict:
    """``warps``: those of one lane a channel. Several lanes a channel where there are too few of them to keep a GPU busy."""
    return {"SPLIT": 2, "TILES": 4, "HOLD": 8} if warps >= 4 * schedulers else {"SPLIT": 4, "TILES": 4, "HOLD": 8}


def parts(tiles: int, channels: int, schedulers: int) -> int:
    """Into how many parts the channels of a head are cut for the gradient kernel: several warps for every scheduler."""
    return max(1, min(channels // 64, 16 * schedulers // tiles))
