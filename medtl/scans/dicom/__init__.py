"""Parts of the DICOM readers: headers, the grouping of files into volumes, and pixel values."""
