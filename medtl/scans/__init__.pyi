from .catalog import scan_folder as scan_folder
from .items import (
    Catalog as Catalog,
    MaskItem as MaskItem,
    Rejection as Rejection,
    Volume as Volume,
    VolumeItem as VolumeItem,
)
from .masks import MaskVoxels as MaskVoxels, read_mask as read_mask, scan_masks as scan_masks
from .readers.dicom_seg import write_seg as write_seg
from .volume import read_volume as read_volume
from .write import write_map as write_map, write_mask as write_mask
