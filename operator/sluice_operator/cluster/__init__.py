"""The only code that talks to the API server to write, and for full lists. Start reading at writes.py."""
