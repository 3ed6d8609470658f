"""What a measurement must move and compute at the least, from the config's closed arithmetic.

Bytes: each weight that takes part once a pass (a shared block again at each call), states read and written, keys and values read
or written once. Activations are left out: they are small where bytes decide (decoding) and not the limit where they are large.
Operations: matrix products, attention over causal pairs, the recurrence (``model/sizes.py``).
"""

from dataclasses import dataclass

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.sizes import item_bytes


@dataclass(frozen=True)
class Cost:
    bytes: int
    flops: int

    def limit(self, copy_rate: float, matrix_rate: float) -> float:
        """Seconds that no version can be faster than: at ``copy_rate`` bytes/s and ``matrix_rate`` operations/s."""
        return max(self.bytes / copy_rate, self.flops / matrix_rate)


def decode(c: ZambaConfig, batch: int, context: int, dtype, state_dtype="float32") -> Cost:
    """One step: one new token for each of ``batch`` sequences that hold ``context`` tokens."""
    moved = c.weights_read_per_token() * item_bytes(dtype)
    moved += batch * (context * c.kv_bytes_per_token(dtype) + 2 * _state(c, dtype, state_dtype))
    return Cost(moved, batch * c.flops(1, context))


def prefill(c: ZambaConfig, batch: int, context: int, dtype, state_dtype="float32") -> Cost:
    """Prompts of ``context`` tokens, logits of the last ones only."""
    moved = c.weights_read_per_token() * item_bytes(dtype)
    moved += batch * (context * c.kv_bytes_per_token(dtype) + _state(c, dtype, state_dtype))
    head = 2 * c.vocab_size * c.d_model * (context - 1)
    return Cost(moved, batch * (c.flops(context) - head))


def train_step(c: ZambaConfig, batch: int, context: int, dtype, recompute: bool = False) -> Cost:
    """Forward and backward: the weights read twice (three times with recomputation), a gradient written for each."""
    reads = 3 if recompute else 2
    moved = (reads * c.weights_read_per_token() + c.n_params()) * item_bytes(dtype)
    return Cost(moved, batch * c.flops(context, training=True))  # recomputation is a choice, not a need: it is not counted


def held(c: ZambaConfig, batch: int, context: int, dtype, state_dtype="float32") -> int:
    """Bytes that weights and the state of ``batch`` sequences of ``context`` tokens take on the device."""
    return c.weight_bytes(dtype) + batch * (context * c.kv_bytes_per_token(dtype) + _state(c, dtype, state_dtype))


def _state(c: ZambaConfig, dtype, state_dtype) -> int:
    return c.state_bytes() * item_bytes(state_dtype) // item_bytes("float32") + c.conv_state_bytes(dtype)
