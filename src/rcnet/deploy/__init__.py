"""Running trained networks on people's images."""
