"""What training will take."""
