"""Numbers about quality and speed."""
