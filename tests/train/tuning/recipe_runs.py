"""What the tests of the tuning recipes share: short runs of the tiny preset."""

from pathlib import Path

from zamba_lm.train.recipes import recipe
from zamba_lm.train.recipes.start import prepare
from zamba_lm.train.trainer.journal import read

CHATS, PAIRS = ("sft", "lora-sft", "qlora-sft"), ("dpo", "lora-dpo")
TUNING = (*CHATS, *PAIRS)
STEPS = 6
SHORT = dict.fromkeys(CHATS, (f"batch.tokens={STEPS * 128}", "run.save_every=3"))
SHORT |= dict.fromkeys(PAIRS, ("batch.epochs=1.4", "batch.pairs=8", "run.save_every=3"))


class Runner:
    """Runs recipes on sets that are there; returns the folder of what was made."""

    def __init__(self, folder, base, sets):
        self.folder, self.base, self.sets = folder, base, sets

    def __call__(self, name, *pairs, out="run", resume=False) -> Path:
        return Path(recipe(name).run(self.settings(name, *pairs, out=out, resume=resume), resume=resume))

    def settings(self, name, *pairs, out="run", resume=False, write=True):
        source = self.sets["pairs" if name in PAIRS else "chat"]
        given = [
            "preset=tiny",
            f"out={self.folder / out}",
            f"start={self.base}",
            f"data.sources.a={source}",
            *SHORT[name],
            *pairs,
        ]
        return prepare(name, [*given, *SHORT[name], *pairs], resume=resume, write=write)[0]


def entries(folder):
    """What training logged, without what differs from machine to machine."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "tokens")
    return [{key: one[key] for key in keys} for one in read(folder / "log.jsonl") if "loss" in one and "eval_loss" not in one]
