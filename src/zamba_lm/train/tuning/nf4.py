"""The frozen part of a model in four bits (NF4 with doubly quantised scales), by bitsandbytes: what QLoRA trains adapters on."""

from torch import nn

from zamba_lm.errors import ZambaError

KEEP = ("adapters",)  # the model's own corrections are small, and close to what is trained


def to_nf4(model, *, device, compute_dtype, keep: tuple[str, ...] = KEEP):
    """Replace the projections of a ``zamba_lm.hf`` model by four-bit ones, one at a time, and move it to ``device``; in place.

    At no moment are two copies of the weights there, and a model read on the CPU never takes its full size on a GPU. Embedding
    and norms stay as they are. ``keep``: parts of names whose projections stay too. Returns the model, which says of itself
    ``is_loaded_in_4bit`` as PEFT and TRL expect. Raises ZambaError without bitsandbytes.
    """
    make = _four_bit(compute_dtype)
    for parent, name, linear in list(_projections(model, keep)):
        setattr(parent, name, make(linear).to(device))
        linear.weight = None  # free it even while somebody holds the module
    model.to(device)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    return model


def _projections(model: nn.Module, keep: tuple[str, ...]):
    """(parent, name, projection) of everything to be quantised."""
    head = model.get_output_embeddings()
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child is not head and not any(part in f"{path}.{name}" for part in keep):
                yield parent, name, child


def _four_bit(compute_dtype):
    """A function from an ``nn.Linear`` to its four-bit stand-in, which is quantised on its way to a device."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise ZambaError(f"four-bit weights need bitsandbytes ({error}); install zamba-lm[train] or use lora-sft") from error

    def make(linear: nn.Linear) -> nn.Linear:
        made = Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=compute_dtype, quant_type="nf4", device="meta"
        )
        made.weight = Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
        )
        made.support_avx512bf16_for_cpu = False  # a CPU's evaluation would repack the weights, for some widths only
        return made

    return make
