"""Imported by the server that forks: what every command would otherwise do first, done once.

What belongs here: what leaves nothing behind but memory. What does not: files, threads, sockets.
"""

from __future__ import annotations

import io

from genai_prices.data_snapshot import get_snapshot
from matplotlib.figure import Figure

from batch_pipeline.cli.main import program

program()
get_snapshot()
_figure = Figure()
_figure.add_subplot()
# finds the fonts of the machine
_figure.savefig(io.BytesIO(), format="svg")
