"""CT scans to 64-pixel slices in Hounsfield units: readers, judgement, one orientation, and the slice store."""
