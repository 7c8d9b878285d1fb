"""What is true in a World now? Each module opens with the question that it answers. plan/ decides what to do about it.

A function that returns `str` for what is lacking or in the way returns words for a message: empty means that nothing
is. A decision makes an obstacle of the words (plan/obstacle.py).
"""
