"""A small model of each family, for tests of whole passes on a GPU."""

from zamba_lm.model.config import ZambaConfig

ZAMBA2 = ZambaConfig(
    family="zamba2", vocab_size=101, d_model=64, n_layers=5, hybrid_layers=(1, 3, 4), n_blocks=2, n_ssm_heads=4, d_state=16,
    n_groups=2, n_heads=4, d_ff=96, adapter_rank=4, attention_adapters=True, rope_theta=1e4, init_std=0.1,
)  # fmt: skip
ZAMBA = ZambaConfig(
    family="zamba", vocab_size=101, d_model=64, n_layers=5, hybrid_layers=(1, 3), n_ssm_heads=2, d_state=16, dt_rank=4,
    n_heads=4, d_ff=96, init_std=0.1,
)  # fmt: skip
