"""What recipes are made of: groups of documented fields. A field's text says its unit; ``resolve.py`` sets them by name."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from zamba_lm.errors import ZambaError


def said(default: Any, text: str, *, least: float | None = None, below: float | None = None) -> Any:
    """A field with a default, the text that the help shows, and the numbers that ``--set`` takes: from ``least``, ``below``."""
    factory = {"default_factory": lambda: type(default)(default)} if isinstance(default, dict) else {"default": default}
    return field(**factory, metadata={"says": text, "least": least, "below": below})


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where text comes from."""

    folder: str = said("", "folder that relative paths below start from; empty: the working directory")
    sources: dict[str, str] = said({}, "NAME=FOLDER of a tokenised set, or FOLDER:PATTERN for some of its shards")
    weights: dict[str, float] = said({}, "share of the rows from each source; need not sum to 1; without: alike")
    held_out: dict[str, str] = said({}, "the same, measured in bits per byte on held-out splits; without: those of the sources")
    seed: int = said(0, "of the order of documents and rows")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How much is trained on, and how much at once."""

    tokens: int = said(1_000_000, "tokens of the whole run; 700e6 is fine", least=0)
    row: int = said(2048, "tokens a row; documents lie in rows side by side and do not see each other", least=2)
    rows: int = said(64, "rows of one optimizer step, of all devices together", least=1)
    micro: int = said(0, "rows at once on one device; 0: the most that the plan says will fit", least=0)
    recompute: str = said("none", "what is computed twice to save memory: none, mixers, blocks or layers")

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.row * self.rows))


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer."""

    name: str = said("adamw", "adamw, or muon: Muon for the matrices of layers and blocks, AdamW for everything else")
    lr: float = said(2e-4, "peak learning rate (with muon: of everything but those matrices)", least=0)
    matrix_lr: float = said(4e-3, "peak learning rate of the matrices with muon, scaled to AdamW's size of updates", least=0)
    beta1: float = said(0.9, "AdamW: decay of the mean of gradients", least=0, below=1)
    beta2: float = said(0.95, "AdamW: decay of the mean of their squares", least=0, below=1)
    eps: float = said(1e-8, "AdamW: added to the root of the latter", least=0)
    momentum: float = said(0.95, "Muon: momentum", least=0, below=1)
    weight_decay: float = said(0.1, "of matrices; vectors (norms, biases, convolutions, A_log, D, dt_bias) never decay", least=0)
    embedding_decay: float = said(0.1, "of the embedding", least=0)
    clip: float = said(1.0, "largest norm of the gradient; 0: never clipped", least=0)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate over the run."""

    kind: str = said("cosine", "constant, linear, cosine or exponential")
    warmup: float = said(0.01, "linear rise from 0: steps, or a share of the run when below 1", least=0)
    floor: float = said(0.1, "learning rate at the end, as a share of the peak", least=0)
    decay_from: float = said(0.0, "share of the run at which the fall begins", least=0, below=1)
    gamma: float = said(0.25, "exponential: eta(t) = a exp(-t / (gamma T)) + b, matched to both ends", least=0.01)

    def warmup_steps(self, steps: int) -> int:
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a model lies on several devices; torchrun says how many."""

    shard: str = said("none", "none: each device holds the whole model; fsdp: a piece of it, of the gradients and the moments")
    replicas: int = said(1, "fsdp: copies of the model in pieces, such as one a machine; each is spread over devices / replicas")
    tensor: int = said(1, "devices that split every layer between them (heads, columns of the MLP) and read the same rows")
    keep: str = said("blocks", "fsdp: what is gathered once a step and kept to its end: none, blocks (shared ones), or all")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the run is kept, watched and measured."""

    seed: int = said(0, "of the initial weights and whatever is drawn at random", least=0, below=2**32)
    device: str = said("auto", "auto (a GPU if there is one), cuda or cpu")
    bf16: bool = said(True, "products in bfloat16 (weights, gradients and moments stay float32); false: all of it float32")
    log_every: int = said(20, "steps between lines of the log", least=1)
    save_every: int = said(500, "steps between checkpoints", least=1)
    keep: int = said(2, "checkpoints that stay, the newest; 0: all", least=0)
    eval_every: int = said(0, "steps between measurements of data.held_out; 0: at the end only", least=0)
    eval_bytes: int = said(0, "bytes of text of each held-out source that are measured; 0: all", least=0)
    stop_after: int = said(10, "steps in a row with a loss or gradient that is not finite, after which the run ends", least=1)
    peak_flops: float | None = said(None, "operations a second of one device, for the MFU; none: known by its name", least=1)
    memory_gib: float | None = said(None, "memory of one device, for the plan, GiB; none: what the device has", least=0)
    tensorboard: bool = said(False, "also write the log to OUT/tensorboard")
    wandb: bool = said(False, "also send the log to Weights & Biases")
    final_dtype: str = said("bfloat16", "of OUT/model, the finished model (checkpoints are float32)")


# recipes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all recipes share."""

    name: ClassVar[str] = ""
    out: str = said("", "run folder: recipe.json, log.jsonl, checkpoint-STEP, and in the end model")
    preset: str = said("", "named settings to start from; everything else that is set comes on top")
    run: Run = field(default_factory=Run)


@dataclass(frozen=True, kw_only=True)
class Language(Recipe):
    """What the recipes on running text share."""

    model: str = said("tiny", "shape by name: a published model's, pebble or tiny; not asked when start is given")
    shape: dict[str, Any] = said({}, "fields of the shape to replace, such as shape.n_layers=9")
    start: str = said("", "weights to start from: a run folder (its newest checkpoint), a checkpoint or a model; empty: random")
    data: Data = field(default_factory=Data)
    batch: Batch = field(default_factory=Batch)
    optim: Optim = field(default_factory=Optim)
    rate: Rate = field(default_factory=Rate)
    scale: Scale = field(default_factory=Scale)


def groups(config: Any) -> list[tuple[str, str, Any]]:
    """(path, text, value) of every field that can be set, groups flattened with dots."""
    found = []
    for one in fields(config):
        value = getattr(config, one.name)
        if hasattr(value, "__dataclass_fields__"):
            found += [(f"{one.name}.{path}", text, inner) for path, text, inner in groups(value)]
        else:
            found.append((one.name, one.metadata.get("says", ""), value))
    return found


def need(value: str, path: str, example: str) -> str:
    """``value``, or ZambaError that tells how to set it."""
    if not value:
        raise ZambaError(f"{path} is not set; give it with --set {path}={example}")
    return value
