"""Brands: research, relationships, categories, catalogue, insights for advertising."""
