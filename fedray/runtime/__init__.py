"""The runtime: how a traced round meets sites. Start reading at `loop.py`, then `round.py` and `pack.py`."""
