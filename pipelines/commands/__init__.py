"""The commands of `care-kpis` beside `batch`, one module each; what takes long to import is imported when one runs."""
