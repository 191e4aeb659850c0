"""What brings Gatecast to where it runs."""
