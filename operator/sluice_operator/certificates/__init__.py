"""The certificate by which pods know the operator: authority.py says when what is made anew, keeper.py keeps it."""
