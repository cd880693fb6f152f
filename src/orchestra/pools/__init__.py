"""Reuse: of plain objects, strings and buffers, and of sessions, processes and connections."""
