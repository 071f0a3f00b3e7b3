"""How results are stored: Parquet, DuckDB, and the commit that shows both at once."""
