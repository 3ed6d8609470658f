"""What Zamba is: config, modules, state, weights."""
