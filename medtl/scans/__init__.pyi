from .catalog import scan_folder as scan_folder
from .items import Catalog as Catalog, MaskItem as MaskItem, Rejection as Rejection, VolumeItem as VolumeItem
from .masks import MaskVoxels as MaskVoxels, read_mask as read_mask, scan_masks as scan_masks
from .seg import write_seg as write_seg
from .volume import Volume as Volume, read_volume as read_volume
from .write import write_map as write_map, write_mask as write_mask
