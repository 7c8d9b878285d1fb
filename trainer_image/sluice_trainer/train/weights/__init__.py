"""What training starts from and changes: the model that learns, in parts or whole, and what of it is trained."""
