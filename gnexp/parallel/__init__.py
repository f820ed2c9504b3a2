"""The processes that train one run together: how they are started, find each other, and end."""
