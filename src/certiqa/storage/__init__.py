"""Files on disk and from the network: the cache, atomic writes, downloads, archives."""
