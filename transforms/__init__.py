"""What is computed; nothing here knows where data comes from or goes to."""
