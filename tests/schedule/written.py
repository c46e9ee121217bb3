"""Schedules as JSON writes them, and which layers of a model attend to all tokens."""

FULL_30 = [True] * 30
GEMMA_18 = [layer % 6 == 5 for layer in range(18)]  # full attention in layers 5, 11 and 17


def one(**fields):
    """A schedule with one boundary in layer 3, and the given fields."""
    return {"boundaries": [{"layer": 3, "keep": 0.5}], **fields}


def many(*boundaries):
    return {"boundaries": list(boundaries)}
