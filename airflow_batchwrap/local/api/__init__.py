"""The REST operations: one operation, one function."""
