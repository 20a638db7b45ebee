"""From a raw interaction file to prepared arrays: download, raw, prepare, synthetic, dataset."""
