"""The decision about one job: decide.py lists its rules, situation.py is what they read, claim_steps.py a claim."""
