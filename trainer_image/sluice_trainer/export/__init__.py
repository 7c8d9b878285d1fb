"""Export: from the last checkpoint to an adapter that can be served. Start with export.py."""
