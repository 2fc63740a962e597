"""From the graphs of a bundle to engines of the device it runs on."""
