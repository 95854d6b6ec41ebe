"""What every command needs: files, logs, the terminal, JSON from outside, and the same arithmetic everywhere."""
