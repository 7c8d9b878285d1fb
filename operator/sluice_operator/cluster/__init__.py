"""The only code that writes to the API server or reads full lists from it. Start at writes.py."""
