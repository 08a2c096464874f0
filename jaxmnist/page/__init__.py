"""The page that runs trained networks in a browser, without a server."""
