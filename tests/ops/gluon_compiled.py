"""Compiles kernels in Gluon for compute capability 9.0 and prints the bytes of shared memory that each takes, as JSON.

A process of its own, since Triton's interpreter, which the tests switch on, and its compiler exclude each other.
"""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from zamba_lm.ops.attention.triton.hopper import KEYS, QUERIES, STAGES, WIDTHS
from zamba_lm.ops.attention.triton.hopper_training import BLOCK
from zamba_lm.ops.attention.triton.hopper_training import STAGES as BLOCKS
from zamba_lm.ops.attention.triton.tall import CHANNELS, TILE, tall_kernel
from zamba_lm.ops.attention.triton.tall import KEYS as TALL_KEYS
from zamba_lm.ops.attention.triton.trio import trio_kernel
from zamba_lm.ops.attention.triton.trio_keys import keys_kernel
from zamba_lm.ops.attention.triton.trio_queries import queries_kernel
from zamba_lm.ops.linear.triton.configs import ring_config, streams_config
from zamba_lm.ops.linear.triton.ring import ring_kernel
from zamba_lm.ops.linear.triton.streams import streams_kernel


def shared(kernel, types: dict[str, str], constants: dict, warps: int, *, odd: bool = False) -> int:
    """Arguments without a type are constants or 32-bit integers: multiples of 16, or, with ``odd``, of nothing known."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if "*" in signature[name] or (signature[name] == "i32" and not odd)
    }
    fixed = {(names.index(name),): value for name, value in constants.items()}
    source = GluonASTSource(kernel, signature, fixed, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).metadata.shared


def ring(width: int, *, gated: bool = False, groups: int = 1, dtype: str = "bf16") -> int:
    c = ring_config(width, gated)
    constants = {"I": width, "I1": width // 2, "LINES": c.lines, "WARPS": c.warps, "DOWN": c.down}
    constants |= {"STAGES": c.stages, "GROUPS": groups, "RESIDUAL": not gated, "GATED": gated, "PDL": True}
    types = dict.fromkeys(("x", "x2", "w", "g", "r", "y"), f"*{dtype}") | {"eps": "fp32"}
    return shared(ring_kernel, types, constants | ({"r": None} if gated else {}), c.warps)


def streams(rows: int, width: int, batch: int, *, gated=False, odd=False, added=True, taps: int = 0) -> int:
    c = streams_config(rows, width, batch, gated, 132)
    constants = {
        "I": width,
        "LINES": c.lines,
        "M": c.tile,
        "BS": c.batch,
        "BK": c.columns,
        "STAGES": c.stages,
        "SPLITS": c.splits,
    }
    residual = not gated and added and not taps
    constants |= {"ADDED": added, "RESIDUAL": residual, "GATED": gated, "WARPS": c.warps, "PDL": True}
    constants |= {"INNER": rows // 2, "C": rows // 2 - 24, "K": taps, "SLOTS": taps > 0, "OLD": taps > 0}
    types = dict.fromkeys(("x", "w", "r", "y", "window"), "*bf16") | {"counters": "*i32", "slots": "*i32"}
    types |= dict.fromkeys(("partial", "convolved_x", "conv_weight", "conv_bias"), "*fp32")
    without = () if residual else ("r",)
    without += () if added else ("y", "counters")
    without += () if taps else ("convolved_x", "window", "slots", "conv_weight", "conv_bias")
    return shared(streams_kernel, types, constants | dict.fromkeys(without), c.warps, odd=odd)


def trio(width: int, *, paged: bool) -> int:
    constants = heads(width) | {"BN": KEYS, "STAGES": STAGES, "PAGED": paged, "LSE": not paged}
    types = {"pages": "*i32", "past": "*i32", "tiles": "*i32", "y": "*bf16", "lse": "*fp32", "scale": "fp32"}
    return shared(trio_kernel, types | sources(width, q=QUERIES // 2, k=KEYS, v=KEYS), constants, 4)


def trio_gradients(width: int, *, keys: bool) -> int:
    types = {"tiles": "*i32", "gradients": "*bf16", "cos": "*fp32", "sin": "*fp32", "scale": "fp32", "log_scale": "fp32"}
    types["numbers"] = f"tensordesc<fp32[{BLOCK}],{gl.NVMMASharedLayout(0, 32, 1)!r}>" if keys else "*fp32"
    rows = BLOCK if keys else KEYS
    types |= sources(width, q=BLOCK, k=rows, v=rows, dy=BLOCK)
    constants = heads(width) | {"TURN": True} | ({"STAGES": BLOCKS} if keys else {})
    return shared(keys_kernel if keys else queries_kernel, types, constants, 4)


def heads(width: int) -> dict:
    a, b = WIDTHS[width]
    return {"HEADS": 32, "D": width, "A": a, "B": b}


def sources(width: int, **rows: int) -> dict[str, str]:
    """Each tensor in tiles of so many rows, in two pieces."""
    pieces = zip("ab", WIDTHS[width], strict=True)
    return {f"{of}_{piece}": tile(n, wide) for piece, wide in pieces for of, n in rows.items()}


def tall(width: int) -> int:
    constants = {"HEADS": 16, "D": width, "PAGED": True, "LSE": True}
    types = {"q": "*bf16", "y": "*bf16", "lse": "*fp32", "pages": "*i32", "past": "*i32", "tiles": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("keys", "values"), f"tensordesc<bf16[{TALL_KEYS.value}, {CHANNELS.value}],{TILE.value!r}>")
    return shared(tall_kernel, types, constants, 4)


def tile(rows: int, wide: int) -> str:
    return f"tensordesc<bf16[{rows}, {wide}],{gl.NVMMASharedLayout.get_default_for([rows, wide], gl.bfloat16)!r}>"


if __name__ == "__main__":
    found = {f"ring {width}": ring(width) for width in (2560, 5120, 10240, 14848)}
    found |= {"ring gated": ring(3712, gated=True), "ring groups": ring(7168, groups=2, dtype="fp16"), "ring narrow": ring(1016)}
    found |= {"streams in": streams(10448, 2560, 32), "streams out": streams(2560, 5120, 64)}
    found |= {"streams shares": streams(2560, 5120, 32, added=False)}
    found |= {f"streams, {n} rows convolved": streams(10448, 2560, n, taps=4, odd=n == 9) for n in (9, 32, 64)}
    found |= {"streams gated": streams(10240, 2560, 2, gated=True), "streams odd": streams(1501, 1032, 3, odd=True)}
    found |= {f"trio {width} {paged}": trio(width, paged=paged) for width in WIDTHS for paged in (True, False)}
    found |= {f"trio gradients {width} {keys}": trio_gradients(width, keys=keys) for width in WIDTHS for keys in (True, False)}
    found |= {"tall 464": tall(464)}
    print(json.dumps(found))
