"""From scan folders to batches.

scan_folder    catalog.py      a folder to volumes and rejections, headers only
read_volume    volume.py       voxels, place in the patient, padding
collect_cases  cases.py        labels, patients, splits; all faults at once
Preprocess     preprocess.py   one grid and one range of values
VolumeCache    cache.py        preprocessed volumes on disk
CaseDataset    dataset.py      augmented samples and their order, from seeds alone
Batch          batch.py        the fields that adapters see
"""
