"""What a mission asks people, and what people tell a mission while it runs."""
