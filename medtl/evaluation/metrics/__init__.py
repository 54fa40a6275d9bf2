"""The measures, and what each means."""
