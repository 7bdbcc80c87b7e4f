"""What a job may name, and nothing else: allow-lists hold the full names of its three classes (kit_files)."""
