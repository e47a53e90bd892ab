"""Applications that the gateway starts itself, watches, replaces and ends.

FastCGI Specification 1.0, section 2: an application finds its listening socket as
descriptor 0. The gateway makes that socket (`listening_socket`), starts a number
of processes on it (`generation`), and exchanges all of that for the like when
there is a reason to (`application`).
"""
