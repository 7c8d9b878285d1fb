"""The endpoint to which trainers and engine agents post. Start reading at server.py."""
