"""What a batch came to: one report model, and its JSON, HTML, Markdown and console faces.

What belongs here: reading the ledger's sums and showing them. What does not: deliverables (sinks),
the UI's assets.
"""
