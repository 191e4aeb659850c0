"""The clients that are compared. Each is a program that posts to one URL and tells what that took: see `section`."""
