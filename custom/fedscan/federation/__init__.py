"""The only room that knows NVFlare: job folders, local federations, records, and the classes that a job may name."""
