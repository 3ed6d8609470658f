"""The cases that this project wants to be good at, as data: what was measured of others, and what we want to reach.

A measurement that fits a case (same kind, model, batch, context, device) is shown beside it. Figures of others were measured
elsewhere, once, as ``SOURCES`` says; they are here to compare with at a glance, and ``--against`` measures them anew.
"""

from dataclasses import dataclass

DEVICE = "H200"  # the cases hold for this card, told by its name
SOURCES = {
    "hf": "transformers 5.23.0, mamba-ssm 2.3.2.post1, causal-conv1d 1.7.0, torch 2.11, one H200, November 2026, random weights",
    "vllm": "vLLM 0.22.1 with CUDA graphs and torch.compile, prefix cache off, one H200, November 2026, random weights",
}
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table. Times are seconds of a step (decode), to the first token (prefill, start) or of a pass (train-step).

    ``reach`` is what we want, ``hf`` and ``vllm`` what others took, None where nobody measured or where they cannot. ``peak``:
    most bytes of device memory we want to hold, ``hf_peak`` what transformers held.
    """

    kind: str
    preset: str
    batch: int = 1
    context: int = 512
    state: str = "float32"  # dtype of the SSM states
    recompute: bool = False
    merge: bool = True  # adapters and links multiplied out beforehand, as ``bench`` does without --no-merge
    reach: float
    peak: float | None = None
    hf: float | None = None
    hf_peak: float | None = None
    vllm: float | None = None

    @property
    def name(self) -> str:
        extras = [self.state + " states"] * (self.state != "float32") + ["recomputation"] * self.recompute
        extras += ["nothing merged"] * (not self.merge)
        return f"{self.kind} {self.preset} {self.batch} x {self.context}" + "".join(f", {extra}" for extra in extras)


def _decode(preset, batch, context, reach_ms, hf_ms=None, vllm_ms=None, **more):
    return Case(kind="decode", preset=preset, batch=batch, context=context, **_seconds(reach_ms, hf_ms, vllm_ms), **more)


def _prefill(preset, context, reach_ms, hf_ms=None, vllm_ms=None, **more):
    return Case(kind="prefill", preset=preset, context=context, **_seconds(reach_ms, hf_ms, vllm_ms), **more)


def _seconds(reach_ms, hf_ms, vllm_ms):
    return {name: ms and ms / 1e3 for name, ms in (("reach", reach_ms), ("hf", hf_ms), ("vllm", vllm_ms))}


CASES = (
    _decode("zamba2-2.7b", 1, 512, 2.1, 79.9, 3.64),
    _decode("zamba2-2.7b", 1, 16384, 3.0, 75.0, 4.35),
    _decode("zamba2-2.7b", 32, 512, 4.6, 99.7, 6.28),
    _decode("zamba2-2.7b", 256, 512, 19.0, None, 24.3),
    _decode("zamba2-2.7b", 256, 512, 15.0, None, 24.3, state="bfloat16"),
    _decode("zamba-7b-v1", 1, 512, 6.1, 75.5),
    _decode("zamba-7b-v1", 32, 512, 9.5, 78.0),
    _prefill("zamba2-2.7b", 2048, 28.0, 85.0, 71.0),
    _prefill("zamba2-2.7b", 16384, 245.0, 420.0, 287.0, peak=9.5 * GB, hf_peak=10.9 * GB),
    _prefill("zamba2-2.7b", 16384, 245.0, 420.0, 287.0, peak=9.5 * GB, hf_peak=10.9 * GB, merge=False),
    _prefill("zamba-7b-v1", 2048, 80.0, 137.0),
    _prefill("zamba-7b-v1", 16384, 720.0, 1454.0, hf_peak=23.2 * GB),
    Case(
        kind="train-step",
        preset="zamba2-2.7b",
        context=4096,
        reach=4096 / 21_000,
        peak=25.8 * GB,
        hf=4096 / 14_480,
        hf_peak=25.8 * GB,
    ),
    Case(
        kind="train-step",
        preset="zamba-7b-v1",
        context=4096,
        recompute=True,
        reach=4096 / 5_000,
        hf=4096 / 3_059,
        hf_peak=31 * GB,
    ),
    Case(kind="start", preset="zamba2-2.7b", context=128, reach=5.0, hf=27.0, vllm=106.0),
)


def find(
    kind: str,
    preset: str | None,
    batch: int,
    context: int,
    state: str = "float32",
    recompute: bool = False,
    merge: bool = True,
) -> Case | None:
    """The case of a measurement, or None."""
    key = (kind, preset, batch, context, state, recompute, merge)
    return next((c for c in CASES if (c.kind, c.preset, c.batch, c.context, c.state, c.recompute, c.merge) == key), None)
