"""A trained model on cases: batches or sliding windows, and masks back in the scan's own grid."""
