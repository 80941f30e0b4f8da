"""ControlNets: copies of a UNet's encoder whose outputs are added to the UNet's. Files, the network, and the one that a
prompt brings along."""
