"""What is so, read from a World: each module opens with the question that it answers. What to do about it is plan/."""
