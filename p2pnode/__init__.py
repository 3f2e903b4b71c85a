"""Everything that touches the world: trio, TCP, the terminal, the disk, the command line."""
