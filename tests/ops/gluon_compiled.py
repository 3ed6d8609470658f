"""Compiles kernels in Gluon for compute capability 9.0 and prints the bytes of shared memory that each takes, as JSON.

A process of its own, since Triton's interpreter, which the tests switch on, and its compiler exclude each other.
"""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from zamba_lm.ops.attention.triton.hopper import KEYS, QUERIES, STAGES, WIDTHS
from zamba_lm.ops.attention.triton.tall import CHANNELS, TILE, tall_kernel
from zamba_lm.ops.attention.triton.tall import KEYS as TALL_KEYS
from zamba_lm.ops.attention.triton.trio import trio_kernel
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


def streams(rows: int, width: int, batch: int, *, gated: bool = False, odd: bool = False) -> int:
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
    constants |= {"RESIDUAL": not gated, "GATED": gated, "WARPS": c.warps, "PDL": True}
    types = dict.fromkeys(("x", "w", "r", "y"), "*bf16") | {"partial": "*fp32", "counters": "*i32"}
    return shared(streams_kernel, types, constants | ({"r": None} if gated else {}), c.warps, odd=odd)


def trio(width: int) -> int:
    a, b = WIDTHS[width]
    constants = {"HEADS": 32, "D": width, "A": a, "B": b, "BN": KEYS, "STAGES": STAGES}
    types = {"pages": "*i32", "past": "*i32", "tiles": "*i32", "y": "*bf16", "scale": "fp32"}
    types |= {f"{of}_{part}": tile(QUERIES // 2 if of == "q" else KEYS, w) for of in "qkv" for part, w in (("a", a), ("b", b))}
    return shared(trio_kernel, types, constants, 4)


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
    found |= {"streams gated": streams(10240, 2560, 2, gated=True), "streams odd": streams(1501, 1032, 3, odd=True)}
    found |= {f"trio {width}": trio(width) for width in WIDTHS}
    found |= {"tall 464": tall(464)}
    print(json.dumps(found))
