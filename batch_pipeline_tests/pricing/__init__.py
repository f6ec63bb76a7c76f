"""Prices and token estimates."""
