"""One function per command word; each joins training, measuring and storing."""
