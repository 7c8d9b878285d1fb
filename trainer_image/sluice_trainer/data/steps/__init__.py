"""dataset.steps: what is done to rows before they become tokens. Begin with step.py; make.py makes them of a spec."""
