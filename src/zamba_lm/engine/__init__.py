"""The kitchen: many requests, one model. Token ids in, token ids out; text is somebody else's floor."""
