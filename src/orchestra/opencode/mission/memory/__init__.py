"""What a mission remembers of earlier work, and tells where it is relevant."""
