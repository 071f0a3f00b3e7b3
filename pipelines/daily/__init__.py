"""The run of a day: its new files, the audit, the report, and how that reaches its readers."""
