"""The paper's sixteen downstream sets: readers of the published folders, official splits, evaluation protocol."""
