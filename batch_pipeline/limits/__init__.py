"""The shared limiter: one rate for each provider, model and key, over every run of every
process.
"""
