"""What `bench`, `evaluation` and `tune` share: clocks, the dense model, tables, figures, files."""
