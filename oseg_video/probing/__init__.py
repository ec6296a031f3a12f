"""What attention looks like, block by block, and what perturbing a block does: the command `probe`."""
