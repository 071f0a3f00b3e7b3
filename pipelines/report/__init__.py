"""The report that people read: one HTML file, the same numbers as CSV and xlsx, and a short text."""
