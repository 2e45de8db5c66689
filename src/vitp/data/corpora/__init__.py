"""The paper's pretraining sets: conversions of the published folders into instruction records."""
