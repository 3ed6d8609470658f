"""Launch configurations; any GPU runs them."""

KEEP = 64  # tokens between the states that the forward pass keeps for the backward pass
TILE = 8  # tokens of one program of the gradient kernel
LANES = 4  # lanes that share a channel in the adjoint kernel
GRADIENT = {"SPLIT": 4}  # the same in the gradient kernel


def forward(warps: int, schedulers: int) -> dict:
    """``warps``: those of one lane a channel. Several lanes a channel where there are too few of them to keep a GPU busy."""
    return {"SPLIT": 2 if warps >= 4 * schedulers else 4, "TILES": 4, "HOLD": 8, "FAR": 3}


def parts(tiles: int, channels: int, schedulers: int) -> int:
    """Into how many parts the channels of a head are cut for the gradient kernel: several warps for every scheduler."""
    return max(1, min(channels // 64, 16 * schedulers // tiles))
