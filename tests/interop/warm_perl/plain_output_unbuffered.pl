#!/usr/bin/perl
# plain: has output
BEGIN { $| = 1; print "Content-Type: text/plain\n\n" }
print "late\n";
