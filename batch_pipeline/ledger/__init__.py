"""The ledger: the one durable record of batches, items, attempts, results, spend and limits."""
