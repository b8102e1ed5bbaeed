"""Networks, teacher or student alike: building them, RedNet, weights digests."""
