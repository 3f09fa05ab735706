"""One runnable file a claim of the README's performance table; the sides of every ratio run in one process, in turn."""
