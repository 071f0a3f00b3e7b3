"""One unbounded graph for clusters: its source, what it writes, and how that becomes a result on one machine."""
