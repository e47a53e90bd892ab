#!/usr/bin/perl
# plain: has .* open when it is compiled
use Fcntl ':flock';
BEGIN { open LOCK, '<', $0; flock LOCK, LOCK_EX | LOCK_NB or die "locked" }
print "locked\n";
