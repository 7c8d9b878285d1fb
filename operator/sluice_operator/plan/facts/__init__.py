"""What is so: what the objects of a World mean, before anybody decides anything."""
