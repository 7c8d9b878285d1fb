"""The certificate by which pods know the operator: authority.py says when what is renewed, keeper.py keeps it."""
