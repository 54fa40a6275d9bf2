"""One file per format, found by its name; `medtl.scans.reader` defines what a reader is."""
