"""A Zamba2 of every part, small enough to train in a test."""

from zamba_lm.model.config import ZambaConfig

TINY = ZambaConfig(
    family="zamba2", vocab_size=50, d_model=32, n_layers=3, hybrid_layers=(1, 2), n_blocks=2, n_ssm_heads=2, d_state=8,
    n_heads=2, d_ff=32, adapter_rank=4, rope_theta=1e4,
)  # fmt: skip
