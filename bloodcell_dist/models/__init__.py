"""The networks: backbones by name, their stateless layers, BatchNorm care."""
