"""The model that is trained, whole or sharded, and its trained weights."""
