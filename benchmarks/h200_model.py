"""A published shape with random weights, and both sides of each of its cases: what benchmarks/h200.py measures."""

from dataclasses import dataclass, field
from functools import partial

import torch

from zamba_lm.eval.bench import peer
from zamba_lm.eval.bench.agree import Agreement, unknown
from zamba_lm.eval.bench.cases import Case
from zamba_lm.eval.bench.clock import allocated
from zamba_lm.eval.bench.job import KINDS, Options, agreement_of, device_facts, reference_of
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.eval.bench.sides import Place
from zamba_lm.eval.bench.subject import Subject, choose
from zamba_lm.eval.bench.whole import Bench
from zamba_lm.model.ready import for_training, ready

PATIENT = 1024  # tokens


def has_scan() -> bool:
    """Does transformers find mamba-ssm's Mamba-1 scan?"""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception:  # not installed, or broken
        return False
    return callable(selective_scan_fn)


@dataclass
class Model:
    """A preset on the device, with transformers' model on the same weights once somebody asks for it."""

    name: str
    device: torch.device
    roof: Roof
    rounds: int
    layers: int | None = None
    theirs: object = None
    agreements: dict[bool, Agreement] = field(default_factory=dict)  # by "for training"

    def __post_init__(self):
        self.subject: Subject = choose(self.name, True, None, self.layers, self.device, "bf16", 0)
        self.config = self.subject.config()
        self.model = self.subject.build()
        self.place = Place(self.device, device_facts(self.device)["name"], self.roof, allocated(self.device))

    def bench(self, case: Case, ours: bool) -> list:
        """Rows of one side of a case."""
        self.prepare(case.kind == "train-step", case.merge)
        how = {"state_dtype": case.state, "recompute": case.recompute, "merge": case.merge, "repeats": self.rounds, "warm_up": 1}
        sizes = {"batches": (case.batch,), "contexts": (case.context,)}
        bench = Bench(
            subject=self.subject,
            model=self.model,
            theirs=None if ours else self.theirs,
            place=self.place,
            ours=ours,
            **sizes,
            **how,
        )
        return KINDS[case.kind](bench)

    def prepare(self, training: bool, merge: bool = True) -> None:
        """As decoding wants the model, or as training does. (On a CPU preparing packs weights, which nothing undoes.)"""
        if self.device.type == "cuda":
            if training or not merge:
                for_training(self.model)
            if not training:
                ready(self.model, merge=merge)

    def compare(self) -> None:
        """Build their model, and hold both sides against the exact pass, for decoding and for training."""
        self.theirs = peer.build(self.model)
        reference, problem = reference_of(self.model)
        for training in (False, True):
            self.prepare(training)
            agree = partial(agreement_of, self.model, self.theirs, reference, training, Options(kind=""))
            try:
                self.agreements[training] = unknown(problem) if reference is None else agree()
            except Exception as error:  # without an agreement there are times and no speed-ups
                self.agreements[training] = unknown(f"could not be compared: {type(error).__name__}: {error}"[:300])

    def slow_peer(self, case: Case) -> str:
        """Why transformers would take minutes over a case here, or nothing: without mamba-ssm it goes through the Mamba-1 scan
        token by token."""
        steps = case.context > PATIENT and case.kind != "decode" and self.config.family == "zamba"
        return "transformers finds no mamba-ssm, and its scan token by token is left out" if steps and not has_scan() else ""
