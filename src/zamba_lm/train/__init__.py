"""Making models: sets of token ids, recipes, a trainer that resumes, tuning, training on several devices."""
