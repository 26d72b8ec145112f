"""PTX instructions as intrinsics, one file a family. Nothing here knows what attention is."""
