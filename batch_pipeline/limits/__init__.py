"""The shared limiter: one rate per provider, model and key, over every run of every process."""
