"""Launch configurations; any GPU runs them."""

PIECE = 64  # tokens of one sequence in the forward kernel's layout of B and C, a multiple of what it takes at once
KEEP = 64  # tokens between the states that the forward pass keeps for a backward pass that comes later
TILE = 8  # tokens of one program of the gradient kernel
ADJOINTS = {"SPLIT": 4, "FAR": 4}  # lanes that share a channel, and tiles for which the L2 cache is asked beforehand
GRADIENT = {"SPLIT": 4}


def forward(warps: int, schedulers: int) -> dict:
    """``warps``: those of one lane a channel. Several lanes a channel where there are too few of them to keep a GPU busy."""
    return {"SPLIT": 2 if warps >= 4 * schedulers else 4, "TILES": 4, "HOLD": 8, "FAR": 3}


def parts(tiles: int, channels: int, schedulers: int) -> int:
    """Into how many parts the channels of a head are cut for the gradient kernel: several warps for every scheduler."""
    return max(1, min(channels // 64, 16 * schedulers // tiles))
