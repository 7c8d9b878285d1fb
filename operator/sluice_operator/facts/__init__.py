"""What is so, read from a World: each module opens with the question that it answers. What to do about it is plan/.

What is lacking or in the way is said in words here, as the end of a sentence; empty: nothing is. A decision makes an
obstacle of it (plan/obstacle.py).
"""
