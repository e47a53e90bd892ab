#!/usr/bin/perl
# plain: has .* open when it is compiled
use Socket;
BEGIN { socketpair A, B, AF_UNIX, SOCK_STREAM, 0 or die }
syswrite A, "through\n"; sysread B, $x, 100; print $x;
