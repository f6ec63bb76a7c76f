"""Web pages in: fetched safely and politely, and what their article says.

What belongs here: addresses, robots.txt, the fetcher, text extraction, the reader over the page
cache. What does not: the cache's table (ledger/pages.py) and lists of URLs (sources/urls.py).
"""
