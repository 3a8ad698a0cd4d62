"""The networks: backbones by name, rebuilt; weight files found, fetched, read; frozen layers; BatchNorm; cost."""
