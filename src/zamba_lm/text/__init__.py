"""Strings to ids and back: the tokenizer, chat templates, text as it streams in, stop strings. No torch in this room."""
