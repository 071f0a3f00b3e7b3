"""A Flink cluster of one's own, for a try and for the tests: the same batch run, on a real cluster on this machine."""
