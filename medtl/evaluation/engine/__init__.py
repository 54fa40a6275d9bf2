"""Turns a table into results."""
