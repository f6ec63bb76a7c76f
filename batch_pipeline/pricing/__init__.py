"""Prices and estimates: what an attempt cost, and what a batch may cost before it runs."""
