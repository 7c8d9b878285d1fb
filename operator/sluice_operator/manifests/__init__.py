"""Pure builders: values in, manifests out. Read the results as YAML in tests/golden.

Nothing here reads a World, a clock or a cluster. A manifest carries every field that Sluice owns, as
server-side apply wants it.
"""
