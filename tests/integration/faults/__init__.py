"""Journeys, what may go wrong in them, and how all of them must end: start reading at plans.py."""
