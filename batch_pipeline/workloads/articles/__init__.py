"""Backlink articles: research, writing, quality control."""
