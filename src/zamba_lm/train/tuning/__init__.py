"""Finished models made better at something: supervised and preference tuning, whole or through low-rank adapters."""
