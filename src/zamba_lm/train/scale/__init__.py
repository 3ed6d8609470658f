"""One run over many devices: weights, gradients and moments spread by FSDP2, checkpoints in pieces, written in the background."""
