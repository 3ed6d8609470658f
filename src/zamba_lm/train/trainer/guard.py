"""The divergence guard: a step whose loss or gradient is not finite changes nothing; too many in a row end the run."""

import torch
import torch.distributed as dist

from zamba_lm.errors import ZambaError


class Guard:
    """Watches one optimizer. Nothing here waits for the device except ``read``, which is called where a run logs or saves.

    An optimizer that can leave a step out by itself (``_step_supports_amp_scaling``: it honours ``found_inf``, as torch's fused
    AdamW does) is told on the device. For any other the gradients are taken away, which costs one wait a step.
    """

    COUNTS = (
        "skipped",
        "row",
        "last",
        "bad_losses",
    )  # all so far; the latest ones in a row; the last one's step; losses left out

    def __init__(self, stop_after: int, device: torch.device):
        self.stop_after = stop_after
        self.counts = torch.zeros(4, device=device, dtype=torch.float64)
        self.bad = torch.zeros((), device=device, dtype=torch.float32)  # of the step that is under way

    def see_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss as it may be summed up: 0 where it is not finite, which spoils the step."""
        bad = ~torch.isfinite(loss)
        self.bad = torch.maximum(self.bad, bad.float())
        self.counts[3] += bad
        return torch.where(bad, torch.zeros_like(loss), loss)

    def see_gradient(self, norm: torch.Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Called between backward and the optimizer's step number ``step``; all processes decide alike."""
        bad = torch.maximum(self.bad, (~torch.isfinite(norm)).float())
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._count(bad, step)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif bool(bad):
            optimizer.zero_grad(set_to_none=True)
        self.bad = torch.zeros_like(bad)

    def _count(self, bad: torch.Tensor, step: int) -> None:
        skipped, row, last, losses = self.counts.unbind()
        self.counts = torch.stack((skipped + bad, (row + 1) * bad, torch.where(bad > 0, float(step), last), losses))

    def counted(self) -> dict[str, int]:
        """The counts."""
        return dict(zip(self.COUNTS, map(int, self.counts.tolist()), strict=True))

    def read(self) -> dict[str, int]:
        """The counts; ZambaError when the run has stopped getting anywhere."""
        counts = self.counted()
        if counts["row"] >= self.stop_after:
            raise ZambaError(
                f"the last {counts['row']} steps up to step {counts['last']} had a loss or gradient that is not finite and were "
                f"left out; lower the learning rate or the clip, look at the data of these steps, and go on with --resume"
            )
        return counts

    def load(self, counts: dict[str, int]) -> None:
        self.counts = torch.tensor([float(counts[name]) for name in self.COUNTS], dtype=torch.float64, device=self.counts.device)
