"""The ledger: the durable record of batches, items, attempts, results, spend and limits; the one
truth.
"""
