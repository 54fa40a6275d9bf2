"""One file a format, found by its name; `medtl.scans.reader` says what a reader is."""
