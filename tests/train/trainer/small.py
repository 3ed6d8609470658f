"""A trainer on a model of a few thousand parameters, with rows that are drawn from their number: milliseconds a step."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from tests.model.tiny import CONFIGS
from zamba_lm.hf import wrap
from zamba_lm.model.zamba import Zamba
from zamba_lm.train import optim
from zamba_lm.train.data import collate
from zamba_lm.train.trainer.arguments import steady_arguments
from zamba_lm.train.trainer.feed import Feed, Phase
from zamba_lm.train.trainer.schedules import schedule
from zamba_lm.train.trainer.zamba_trainer import ZambaTrainer

ROW, BORDER = 24, 15


class Counted:
    """Row n is the same for ever."""

    def __init__(self, row=ROW):
        self.next, self.row = 0, row

    def __iter__(self):
        while True:
            ids = torch.randint(1, 61, (self.row,), generator=torch.Generator().manual_seed(self.next))
            labels = ids.clone()
            labels[[0, BORDER]] = -100
            self.next += 1
            yield {"input_ids": ids, "labels": labels, "lengths": (BORDER, self.row - BORDER)}

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def feed(rows=2, **settings) -> Feed:
    return Feed([Phase(Counted(), rows)], collate, device=torch.device("cpu"), **settings)


def trainer(out: Path, *, steps=8, family="zamba2, everything", kind="adamw", watch=None, held_out=None, **changes):
    """``changes``: of TrainingArguments."""
    zamba = Zamba(CONFIGS[family], dtype=torch.float32).init_weights(0)
    settings = {
        "output_dir": str(out), "max_steps": steps, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "max_grad_norm": 1.0, "use_cpu": True, "logging_steps": 3, "save_steps": 4, "ignore_data_skip": True,
        "remove_unused_columns": False, "seed": 1,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return ZambaTrainer(
        wrap(zamba),
        args=TrainingArguments(**steady_arguments(**settings | changes)),
        build_optimizer=lambda model: optim.build(model.zamba, kind, lr=1e-2),
        feed=feed(),
        rate=schedule("cosine", steps=steps, warmup=2, floor=0.1),
        held_out=held_out,
        watch=watch,
    )
