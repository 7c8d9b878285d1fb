"""One job: decide.py is its list of rules, over a situation (situation.py); holding.py is the life of its claim."""
