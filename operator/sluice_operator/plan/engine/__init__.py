"""One engine: decide.py says what each of its replicas should be, by the rules in slot_plans.py."""
