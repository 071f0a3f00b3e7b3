"""Live KPIs: cycle after cycle over what came in, each with one transaction."""
