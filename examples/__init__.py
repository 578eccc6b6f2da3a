"""Runnable examples, a network or a task each."""
