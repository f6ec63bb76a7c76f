"""Tables in: files of rows become an `InputTable`, read as a stream.

What belongs here: reading and checking tables of any meaning. What does not: what a row means
(workloads/).
"""
