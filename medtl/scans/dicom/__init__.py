"""What the DICOM readers are made of: a file's header, the grouping of files into volumes, the values of pixels."""
