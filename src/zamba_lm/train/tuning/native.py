"""What our models and TRL's trainers need of each other."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType

from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.utils import FusedCausalLMOutput

from zamba_lm.hf.loss import targets
from zamba_lm.ops.xent import token_scores
from zamba_lm.train.trainer.schedules import Rate
from zamba_lm.train.tuning.fused import fuse


def bare(model):
    """The ``zamba_lm.hf`` model inside a ``PeftModel``, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def own_head(model) -> None:
    """Have the model answer TRL's ``fused_lm_head=True`` by ``ops.xent``, in place of the head that TRL gave it.

    TRL's runs over padded rows; this one over the packed tokens of the pass.
    """
    inner = bare(model)
    plain = type(inner).forward

    @wraps(plain)
    def forward(self, *args, fused_lm_head: bool = False, **kwargs):
        return _scores(self, *args, **kwargs) if fused_lm_head else plain(self, *args, **kwargs)

    inner.forward = MethodType(forward, inner)


def _scores(
    model, input_ids=None, attention_mask=None, *, labels=None, shift_labels=None, num_items_in_batch=None, inputs_embeds=None,
    use_cache=False, **kwargs,
) -> FusedCausalLMOutput:  # fmt: skip
    """What TRL asks of every token that has a label; zero elsewhere. (B, T - 1), or (B, T) with ``shift_labels``."""
    shifted = shift_labels is not None
    given = shift_labels if shifted else labels
    read = model.read(input_ids, inputs_embeds, attention_mask=attention_mask, use_cache=False, **kwargs)
    targets_N = targets(given, read.layout, shifted=shifted)
    scores = _of_labelled(read.hidden_ND, model.get_output_embeddings().weight, targets_N)
    mask = read.layout.unpack(targets_N >= 0)
    if attention_mask is not None:
        mask = mask & (attention_mask[:, -mask.shape[1] :] != 0)  # a place of padding shows its neighbour's
    columns = slice(None) if shifted else slice(None, -1)
    mask = mask[:, columns]
    logprob, entropy, mean, top = (read.layout.unpack(one)[:, columns] * mask for one in scores)
    count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return FusedCausalLMOutput(
        loss=-logprob.sum() / count, log_probs=logprob, entropy=entropy, mean_logits=mean, is_top1=top, label_mask=mask
    )


def _of_labelled(hidden_ND, weight_VD, targets_N) -> list:
    """``token_scores`` of the tokens that have a label, zeros for the others: prompts need no logits."""
    kept = (targets_N >= 0).nonzero()[:, 0]
    scores = token_scores(hidden_ND[kept], weight_VD, targets_N[kept])
    return [one.new_zeros(len(targets_N)).index_copy(0, kept, one) for one in scores]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices about names of transformers that TRL and PEFT still use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing` is deprecated", FutureWarning)
        yield


class Native:
    """First among the bases of a TRL trainer: our head, adapters that stay float32, and nobody is told of the run."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        own_head(self.model)
        fuse(self.model)
        for parameter in self.model.parameters():
            if parameter.requires_grad and getattr(self.model, "is_loaded_in_4bit", False):
                parameter.data = parameter.data.float()  # TRL makes them bfloat16, in which small steps are lost

    def fit(self, *, resume: bool = False) -> None:
        """As ``Sturdy.fit``. PEFT would widen what enters an adapter to float32, for autocast to narrow it again."""
        with disable_input_dtype_casting(self.model, active=self.args.bf16):
            super().fit(resume=resume)

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine that nobody asked for."""


class Paced:
    """``build_optimizer`` makes the optimizer of the model, ``rate`` its learning rates as shares of their peaks, by steps done.
    None: what the arguments of the trainer say."""

    def __init__(
        self, *args, rate: Rate | None = None, build_optimizer: Callable[[nn.Module], Optimizer] | None = None, **kwargs
    ):
        self._rate, self._build_optimizer = rate, build_optimizer
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model=None) -> Optimizer:
        if self.optimizer is None and self._build_optimizer is not None:
            self.optimizer = self._build_optimizer(self.model if model is None else model)
        return super().create_optimizer(model) if self.optimizer is None else self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None and self._rate is not None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self._rate)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer) if self.lr_scheduler is None else self.lr_scheduler
