"""HTTP/1.1: the server, what a door needs of who serves, and the doors themselves."""
