"""One strength a group of writers, fitted by gradient: how little is enough."""
