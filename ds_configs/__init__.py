"""DeepSpeed strategies as JSON files; README.md beside them says when to take which."""
