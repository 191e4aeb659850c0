"""The clients under comparison. Each is a program that posts to one URL and prints its measurement: see `section`."""
