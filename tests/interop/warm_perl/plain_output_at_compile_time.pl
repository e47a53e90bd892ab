#!/usr/bin/perl
# plain: has output
BEGIN { print "early\n" }
print "late\n";
