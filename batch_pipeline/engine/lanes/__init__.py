"""How attempts travel when not in real time: through the providers' Batch APIs."""
