"""The providers room: what goes over the wire to an LLM provider, and what its reply means.

base.py is the seam; one codec per provider; registry.py names them; transport.py sends; keys.py
checks keys and models. Retrying, limits and money do not live here.
"""
