"""Is live traffic still like training, and is the model still good: drift, quality, alerts."""
