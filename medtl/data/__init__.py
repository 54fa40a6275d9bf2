"""From scan folders to batches: `scan_folder`, `read_volume`, `collect_cases`, `VolumeCache`, `CaseDataset`."""
