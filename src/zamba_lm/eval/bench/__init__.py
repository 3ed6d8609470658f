"""How fast a model runs here, beside what the device allows and beside others: `zamba-lm bench`."""
