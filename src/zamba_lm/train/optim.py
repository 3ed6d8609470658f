"""Optimizers of a Zamba: AdamW, or Muon for matrices with AdamW for the rest, as one ``torch.optim.Optimizer``.

    optimizer = build(model, "muon", lr=4e-3)
    norm = clip(optimizer, 1.0); optimizer.step(); optimizer.zero_grad()

Muon (K. Jordan, 2024) steps along the momentum made orthogonal by five Newton-Schulz iterations. Here all matrices of one
shape go through them together, in bfloat16: a model has many layers and few shapes. No step waits for the device.

Parameters may be spread over devices (``train/scale``): each device steps its own pieces, and with Muon makes its share of the
matrices orthogonal.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from zamba_lm.errors import ZambaError
from zamba_lm.train.scale.pieces import by_matrix, local, norm
from zamba_lm.train.scale.shares import share_of

KINDS = ("adamw", "muon")
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # coefficients of x, x^3, x^5
SMALLEST_NORM = 1e-7
VECTORS = ("conv_weight", "dt_bias", "D")  # of two dimensions in one family or both, and no matrices


def build(
    model: nn.Module,
    kind: str = "adamw",
    *,
    lr: float,
    other_lr: float | None = None,
    weight_decay: float = 0.1,
    embedding_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
) -> "Optimizer":
    """An optimizer for the model's parameters that require gradients.

    ``lr``: peak learning rate of matrices; ``other_lr``: of all else (None: the same). ``weight_decay``: of matrices;
    ``embedding_decay``: of the embedding (None: a tenth of it). Norms, biases, A_log, D, dt_bias and convolutions do not decay.
    Raises ZambaError for another kind, and for a model with nothing to train.
    """
    if kind not in KINDS:
        raise ZambaError(f"unknown optimizer {kind!r}, expected one of {', '.join(KINDS)}")
    matrices, stacks, embedding, rest = split(model)
    other_lr = lr if other_lr is None else other_lr
    of_matrices = {"muon": {"momentum": momentum}, "adamw": {"betas": betas, "eps": eps}}[kind]
    adam = {"kind": "adamw", "betas": betas, "eps": eps, "lr": other_lr}
    groups = [
        {"params": matrices, "kind": kind, "lr": lr, "weight_decay": weight_decay, **of_matrices},
        {"params": stacks, "weight_decay": weight_decay, **adam},
        {"params": embedding, "weight_decay": weight_decay / 10 if embedding_decay is None else embedding_decay, **adam},
        {"params": rest, "weight_decay": 0.0, **adam},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ZambaError("no parameter of the model requires a gradient: there is nothing to train")
    return Optimizer(groups)


def split(model: nn.Module) -> tuple[list[nn.Parameter], ...]:
    """Trainable parameters: matrices of projections, stacks of them (Mamba-1 has two), the embedding, and everything else."""
    found: dict[str, list[nn.Parameter]] = {"matrix": [], "stack": [], "embedding": [], "vector": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            found[kind_of(name, p)].append(p)
    return tuple(found.values())


def kind_of(name: str, p: torch.Tensor) -> str:
    """ "matrix", "stack", "embedding" or "vector"; convolutions and what each head has of its own are vectors."""
    last = name.rpartition(".")[2]
    if "embedding" in name:
        return "embedding"
    if last in ("x_proj", "dt_proj"):
        return "stack"
    return "matrix" if p.dim() == 2 and last not in VECTORS else "vector"


def clip(optimizer: torch.optim.Optimizer, largest: float) -> torch.Tensor:
    """The gradients' norm, float32 on the device. The next ``step`` of an ``Optimizer`` divides gradients by as much as they are
    too long, on its way; other optimizers get them shortened here."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in parameters]
    length = norm(grads, [share_of(p) for p in parameters])
    too_long = (length / largest).clamp(min=1.0)
    if isinstance(optimizer, Optimizer):
        optimizer.grad_scale = too_long
    else:
        torch._foreach_div_([local(grad) for grad in grads], too_long)
    return length


class Optimizer(torch.optim.Optimizer):
    """AdamW or Muon by group (``kind``). As torch's fused optimizers do, a step honours ``found_inf`` (None, or a float32 scalar
    on the device: 1 leaves parameters and state as they are) and ``grad_scale`` (None, or what gradients are divided by);
    ``clip`` sets the latter for one step."""

    _step_supports_amp_scaling = True

    def __init__(self, groups):
        self.found_inf: torch.Tensor | None = None
        self.grad_scale: torch.Tensor | None = None
        super().__init__(groups, {})
        for group in self.param_groups:
            group["fused"] = group["kind"] == "adamw" and all(p.is_cuda for p in group["params"])

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["kind"] == "muon" else self._adamw)(group, parameters)
        self.grad_scale = None
        return loss

    def start(self, group, p: nn.Parameter) -> dict[str, torch.Tensor]:
        """The state of a parameter; before its first step zeros, laid out as the parameter is."""
        if not self.state[p] and group["kind"] == "muon":
            self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        elif not self.state[p]:
            step = torch.zeros((), dtype=torch.float32, device=p.device if group["fused"] else "cpu")
            self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]

    def _adamw(self, group, parameters) -> None:
        states = [self.start(group, p) for p in parameters]
        fused, grads = group["fused"], [local(p.grad) for p in parameters]
        if not fused:
            if self._is_bad():
                return
            grads = self._scaled(grads)
        adamw(
            [local(p) for p in parameters],
            grads,
            *([local(s[key]) for s in states] for key in ("exp_avg", "exp_avg_sq")),
            [],
            [s["step"] for s in states],
            foreach=not fused,
            fused=fused,
            grad_scale=self.grad_scale if fused else None,
            found_inf=self.found_inf if fused else None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _is_bad(self) -> bool:
        """On a CPU, where nothing is waited for."""
        return self.found_inf is not None and bool(self.found_inf)

    def _scaled(self, grads):
        return grads if self.grad_scale is None else torch._foreach_div(grads, self.grad_scale)

    def _muon(self, group, parameters) -> None:
        buffers = [local(self.start(group, p)["momentum_buffer"]) for p in parameters]
        grads, pieces = self._scaled([local(p.grad) for p in parameters]), [local(p) for p in parameters]
        good = 1.0
        if self.found_inf is not None:  # a bad gradient becomes the momentum itself, which then stays as it is
            bad, good = self.found_inf > 0, 1.0 - self.found_inf.float()
            grads = [torch.where(bad, buffer, grad) for buffer, grad in zip(buffers, grads, strict=True)]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, buffers, group["momentum"])  # Nesterov's
        lr, decay = group["lr"], group["lr"] * group["weight_decay"]
        torch._foreach_mul_(pieces, 1 - decay * good)
        for shape, members in _by_shape(parameters).items():
            like, stacked = parameters[members[0]], torch.stack([ahead[i] for i in members])
            spread = isinstance(like, DTensor)
            steps = (by_matrix(stacked.bfloat16(), like, orthogonal) if spread else orthogonal(stacked)).float()
            size = 0.2 * max(shape) ** 0.5  # as long as AdamW's steps are
            torch._foreach_add_([pieces[i] for i in members], list(steps.mul_(-lr * size * good).unbind()))


def _by_shape(parameters) -> dict[torch.Size, list[int]]:
    found: dict[torch.Size, list[int]] = {}
    for i, p in enumerate(parameters):
        found.setdefault(p.shape, []).append(i)
    return found


def orthogonal(matrices_NOI: torch.Tensor) -> torch.Tensor:
    """Each matrix with its singular values brought near 1, in bfloat16."""
    X = matrices_NOI.bfloat16()
    tall = X.shape[1] > X.shape[2]
    X = X.mT if tall else X
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for a, b, c in NEWTON_SCHULZ:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X
