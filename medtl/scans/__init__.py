"""Reads files as volumes and masks, and writes them back. Needs neither torch nor labels.

scan_folder    catalog.py   a folder to volumes and rejections, headers only
read_volume    volume.py    voxels, place in the patient, padding
scan_masks     masks.py     a folder to masks; read_mask: class indices on the scan's voxels
write_mask     write.py     masks and maps in the grid of their scan; write_seg: as DICOM SEG
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
