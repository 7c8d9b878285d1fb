"""kopf's part: watches, and what they put into the store and the queue. Start reading at watching.py."""
