"""The command line. Modules import what is heavy (torch, MONAI, NVFlare) inside the commands, so that help is quick."""
