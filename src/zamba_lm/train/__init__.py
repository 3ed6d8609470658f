"""Making models: corpora of token ids, the training loop, the embedded model's recipe."""
