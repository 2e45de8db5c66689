"""The models' parts that need a form of their own in a graph: fixed shapes, and no step that depends on the data."""
