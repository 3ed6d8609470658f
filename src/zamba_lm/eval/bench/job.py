"""A run of `zamba-lm bench` from its options to its report."""

import datetime
import platform
import shlex
import sys
from dataclasses import dataclass

import torch
from torch import nn

from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import peer, probe, start, whole
from zamba_lm.eval.bench.agree import Agreement, unknown
from zamba_lm.eval.bench.clock import allocated, tidy
from zamba_lm.eval.bench.decoder import EngineDecoder
from zamba_lm.eval.bench.exact import exact_copy
from zamba_lm.eval.bench.kernels import Plan, kernels
from zamba_lm.eval.bench.report import Report
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.eval.bench.sides import Place, compared
from zamba_lm.eval.bench.subject import Subject, choose, require_room
from zamba_lm.model.dtypes import as_dtype, dtype_name
from zamba_lm.model.load import as_device
from zamba_lm.model.ready import ready
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.dispatch import table, use

KINDS = {"decode": whole.decode, "prefill": whole.prefill, "train-step": whole.train_step}
CONTEXTS = {"decode": (512, 64), "prefill": (2048, 128), "train-step": (4096, 128), "kernels": (4096, 64), "start": (128, 128)}
PEERS = ("transformers",)
VERSIONS = ("zamba-lm", "torch", "triton", "transformers", "mamba-ssm", "causal-conv1d")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say. ``batch``, ``context`` and ``op`` are lists as typed: "1,32"; empty is the default."""

    kind: str
    preset: str | None = None
    random: bool = False
    model: str | None = None
    layers: int | None = None
    batch: str = "1"
    context: str = ""
    against: str | None = None
    dtype: str = "bf16"
    device: str = "auto"
    seed: int = 0
    repeats: int = 5
    state_dtype: str = "fp32"
    merge: bool = True
    recompute: bool = False
    backend: str = "auto"
    op: str = ""


def run(options: Options) -> Report:
    """Measure. ZambaError for options that name nothing, and for a device too small, before anything is allocated on it."""
    device = as_device(options.device)
    if options.backend == "auto":
        return _run(options, device)
    use(options.backend, device)
    try:
        return _run(options, device)
    finally:
        use("auto", device)


def _run(options: Options, device: torch.device) -> Report:
    subject = choose(options.preset, options.random, options.model, options.layers, device, options.dtype, options.seed)
    batches = whole_numbers("--batch", options.batch)
    default = str(CONTEXTS[options.kind][device.type == "cpu"])
    contexts = whole_numbers("--context", options.context or default)
    _check(options)
    config = subject.config()
    if options.kind != "kernels":
        require_room(config, device, subject.dtype, batches, contexts, training=options.kind == "train-step")
    roof = Roof.of(device, as_dtype(subject.dtype))
    report = blank(options, subject, config, device, roof)
    if options.kind == "kernels":
        sizes = {"batches": batches, "contexts": contexts, "repeats": options.repeats, "seed": options.seed}
        ops = tuple(word for word in options.op.replace(" ", "").split(",") if word)
        report.rows = kernels(Plan(config=config, dtype=subject.dtype, device=device, roof=roof, ops=ops, **sizes))
    elif options.kind == "start":
        report.rows = start.rows(subject, Place(device, report.device["name"], roof, 0), contexts[0], options.against)
    else:
        _measure(options, subject, report, batches, contexts)
    return report


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """``"1,32"`` as (1, 32). ZambaError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ZambaError(f"{option} {text!r}: expected whole numbers of at least 1 with commas between them, such as 1,32")
    return tuple(dict.fromkeys(map(int, words)))


def _check(options: Options) -> None:
    if options.against not in (None, *PEERS):
        raise ZambaError(f"--against {options.against!r}: expected {' or '.join(PEERS)}")
    if options.repeats < 1:
        raise ZambaError(f"--repeats {options.repeats}: expected a whole number of at least 1")
    if not 0 <= options.seed < 2**63:
        raise ZambaError(f"--seed {options.seed}: expected a whole number from 0 to 2^63 - 1")
    if options.kind == "start" and "," in options.context:
        raise ZambaError(f"--context {options.context!r}: start measures one length, and is called again for another")
    if dtype_name(as_dtype(options.state_dtype)) not in ("float32", "bfloat16"):
        raise ZambaError(f"--state-dtype {options.state_dtype!r}: expected fp32 or bf16")
    if options.against and options.kind != "kernels":
        peer.describe(required=True)


def _measure(options: Options, subject: Subject, report: Report, batches, contexts) -> None:
    """Rows, and with a peer what both sides' outputs are worth."""
    training = options.kind == "train-step"
    model, theirs, reference = subject.build(), None, None
    held = allocated(subject.device)
    if options.against:
        theirs = peer.build(model)
        reference, problem = reference_of(model)
    if not training:
        ready(model, merge=options.merge)
    if theirs is not None:
        report.agreement = unknown(problem) if reference is None else agreement_of(model, theirs, reference, training, options)
        reference = None
        tidy(subject.device)
    bench = whole.Bench(
        subject=subject,
        model=model,
        theirs=theirs,
        place=Place(subject.device, report.device["name"], report.roof, held),
        batches=batches,
        contexts=contexts,
        repeats=options.repeats,
        state_dtype=dtype_name(as_dtype(options.state_dtype)),
        recompute=options.recompute,
        merge=options.merge or training,
    )
    report.rows = compared(KINDS[options.kind](bench), report.agreement)


def reference_of(model: Zamba) -> tuple[Zamba | None, str]:
    try:
        return exact_copy(model), ""
    except ZambaError as problem:
        return None, str(problem)


def agreement_of(model: Zamba, theirs: nn.Module, reference: Zamba, training: bool, options: Options) -> Agreement:
    if training:
        return probe.training(model, theirs, reference, options.seed)
    ours = EngineDecoder(model, 1, probe.TOKENS, dtype_name(as_dtype(options.state_dtype)))
    return probe.inference(model, theirs, reference, ours, peer.TheirDecoder(theirs, 1), options.seed)


def blank(options: Options, subject: Subject, config, device: torch.device, roof: Roof) -> Report:
    """A report without rows."""
    model = {
        "name": subject.name,
        "preset": subject.preset,
        "random": subject.preset is not None,
        "layers": config.n_layers,
        "dtype": subject.dtype,
        "parameters": config.n_params(),
        "weight_bytes": config.weight_bytes(),
    }
    return Report(
        kind=options.kind,
        command=shlex.join(["zamba-lm", *sys.argv[1:]]),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions(),
        device=device_facts(device),
        roof=roof,
        model=model,
        options=vars(options),
        peer=peer.describe() if options.against else None,
    )


def versions() -> dict:
    """Of Python and the packages that matter here; None for those that are not installed."""
    return {"python": platform.python_version()} | {name: peer.installed(name) for name in VERSIONS}


def device_facts(device: torch.device) -> dict:
    """Kind, name and bytes of memory (None for a CPU) of a device, and which implementation each op uses on it."""
    ops = {op: implementation for op, implementation, _ in table(device)}
    if device.type != "cuda":
        name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
        return {"kind": "cpu", "name": name, "memory": None, "ops": ops}
    found = torch.cuda.get_device_properties(device)
    return {"kind": "cuda", "name": found.name, "memory": found.total_memory, "ops": ops}
