"""One module per source format that is not the contract's own."""
