"""What is written down of a live server: steps, requests, arrivals."""
