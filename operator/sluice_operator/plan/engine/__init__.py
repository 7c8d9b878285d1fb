"""The decision about one engine: decide.py says what it needs, slot_plans.py by which rules each replica is planned."""
